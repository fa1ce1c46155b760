import { describe, expect, test } from 'vitest'
import { errorText, messagesOf } from '../src/chat/answer'
import { PARAMETER_NAMES, parameterTexts, parseParameter, requestFields, validParameters } from '../src/chat/parameters'
import { fromVersion1, type Chat, type Message } from '../src/chat/store'
import { asMarkdown, depthOf, exported, fileName, imported, renewed } from '../src/chat/transfer'
import { childrenOf, newestLeaf, pathTo } from '../src/chat/tree'

function message(id: string, parent: string | null, more: Partial<Message> = {}): Message {
  return { id, chat: 'c', parent, role: parent === null ? 'user' : 'assistant', made: 1, text: id, ...more }
}
const chat: Chat = { id: 'c', title: 'Title', model: 'm', system: '', parameters: {}, changed: 5, leaf: 'b' }
const tree = (...all: Message[]): Map<string, Message> => new Map(all.map((one) => [one.id, one]))

describe('the tree of a chat', () => {
  const messages = tree(
    message('a', null),
    message('b', 'a', { made: 2 }),
    message('b2', 'a', { made: 3 }),
    message('c', 'b', { made: 4 }),
    message('d', 'c', { made: 5 }),
  )
  test('has a path to each leaf', () => {
    expect(pathTo(messages, 'd').map((one) => one.id)).toEqual(['a', 'b', 'c', 'd'])
    expect(pathTo(messages, 'b2').map((one) => one.id)).toEqual(['a', 'b2'])
    expect(pathTo(messages, null)).toEqual([])
    expect(pathTo(messages, 'nowhere')).toEqual([])
  })
  test('has versions and a newest leaf below each', () => {
    const children = childrenOf(messages)
    expect(children.get('a')?.map((one) => one.id)).toEqual(['b', 'b2'])
    expect([newestLeaf(children, 'b'), newestLeaf(children, 'b2'), newestLeaf(children, 'a')]).toEqual([
      'd',
      'b2',
      'b2',
    ])
  })
  test('of damaged data ends', () => {
    const circle = tree(message('a', 'b'), message('b', 'a'))
    expect(pathTo(circle, 'a').length).toBe(2)
    expect(['a', 'b']).toContain(newestLeaf(childrenOf(circle), 'a'))
  })
})

describe('a chat of the first version of the database', () => {
  test('becomes a path in its order', () => {
    const { chat: made, messages } = fromVersion1({
      ...{ id: 'x', title: 't', model: 'm', system: 's', changed: 100 },
      messages: [
        { id: '1', role: 'user', text: 'q' },
        { id: '2', role: 'assistant', text: 'a' },
      ],
    })
    expect(made).toMatchObject({ leaf: '2', parameters: {}, system: 's' })
    expect(pathTo(tree(...messages), made.leaf).map((one) => one.text)).toEqual(['q', 'a'])
    expect(fromVersion1({ id: 'x', title: '', model: '', system: '', changed: 1, messages: [] }).chat.leaf).toBeNull()
  })
})

describe('parameters', () => {
  test('are parsed within their bounds', () => {
    const values = ['', ' 0.5 ', '0,5', '2', '2.01', '-1', '1e1', '0x1', 'NaN', 'Infinity', '.5', '1.']
    expect(values.map((text) => parseParameter('temperature', text))).toEqual([
      ...[undefined, 0.5, 0.5, 2, null, null, null, null, null, null, 0.5, null],
    ])
    expect(['0', '1', '1.5'].map((text) => parseParameter('maxTokens', text))).toEqual([null, 1, null])
    expect(['0', '4294967294', '4294967295'].map((text) => parseParameter('seed', text))).toEqual([0, 4294967294, null])
  })
  test('of untrusted values are the valid ones', () => {
    expect(validParameters({ temperature: 0.1, topP: 7, seed: '1', other: 1 })).toEqual({ temperature: 0.1 })
    for (const wrong of [null, 1, 'x', [], undefined]) expect(validParameters(wrong)).toEqual({})
  })
  test('have one field of the request and one text each', () => {
    const all = { temperature: 0, topP: 1, maxTokens: 1, seed: 0 }
    expect(requestFields(all)).toEqual({ temperature: 0, top_p: 1, max_tokens: 1, seed: 0 })
    expect(parameterTexts(all).length).toBe(PARAMETER_NAMES.length)
    expect(requestFields({})).toEqual({})
  })
})

describe('export files', () => {
  const whole = { chat, messages: [message('a', null), message('b', 'a', { model: 'm', writing: 7, images: [] })] }
  test('are imported as they were exported, without what is of a moment', () => {
    const [found] = imported(exported([whole], new Date(0)))
    expect(found?.chat).toEqual(chat)
    expect(found?.messages[1]).toEqual({ ...whole.messages[1], writing: undefined })
    expect(exported([{ ...whole, chat: { ...chat, deleted: 1 } }], new Date(0))).not.toContain('deleted')
  })
  test('can be given other ids', () => {
    let next = 0
    const { chat: other, messages } = renewed(whole, () => `n${next++}`)
    expect(other).toMatchObject({ id: 'n0', leaf: 'n2' })
    expect(messages.map(({ id, parent, chat: of }) => [id, parent, of])).toEqual([
      ['n1', null, 'n0'],
      ['n2', 'n1', 'n0'],
    ])
  })
  test('of unknown shape are refused', () => {
    for (const text of ['', '[]', '{}', 'null', '"x"', '{"format":"mesh-llm chats","version":1}'])
      expect(() => imported(text), text).toThrow(/not an export/)
  })
  test('are measured by their depth outside of texts', () => {
    expect([depthOf('{"a":[1,{"b":"[[[{"}]}', 9), depthOf('"\\"[["', 9), depthOf('[[[[', 2)]).toEqual([3, 0, 3])
  })
  test('have names that any file system takes', () => {
    expect(fileName('../../etc/passwd', 'md')).toBe('etc-passwd.md')
    expect(fileName('Été: "x" 日本', 'json')).toBe('E-te-x-日本.json')
    expect(fileName('///', 'md')).toBe('chat.md')
  })
  test('as Markdown hold the shown path', () => {
    const messages = tree(
      message('a', null, { text: 'Q' }),
      message('b', 'a', { text: 'A', model: 'm', host: 'attic' }),
    )
    expect(asMarkdown({ ...chat, system: 'S' }, messages)).toBe(
      '# Title\n\n## System prompt\n\nS\n\n## You\n\nQ\n\n## m (attic)\n\nA\n',
    )
  })
})

describe('requests', () => {
  test('have no empty answers, and images before the text', () => {
    const path = [message('a', null, { images: ['data:x'] }), message('b', 'a', { text: '' })]
    expect(messagesOf(' ', path)).toEqual([
      {
        role: 'user',
        content: [
          { type: 'image_url', image_url: { url: 'data:x' } },
          { type: 'text', text: 'a' },
        ],
      },
    ])
  })
  test('that are too long are explained in plain words', () => {
    expect(errorText('request (9030 tokens) exceeds the available context size (8192 tokens), try increasing it')).toBe(
      'This chat is too long for the model (9,030 of 8,192 tokens). Start a new chat, or edit an earlier message.',
    )
    expect(errorText('other')).toBe('other')
  })
})
