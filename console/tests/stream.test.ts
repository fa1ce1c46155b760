import { describe, expect, it } from 'vitest'
import { AnswerReader, ThinkingSplitter, type Answer } from '../src/chat/stream'

const event = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`
const delta = (words: object): string => event({ choices: [{ index: 0, delta: words, finish_reason: null }] })
const STREAM =
  ': loading model: 40 %\n\n' +
  delta({ role: 'assistant', content: null }) +
  ': answered by peer 0123456789\n\n' +
  delta({ reasoning_content: 'First, ' }) +
  delta({ reasoning_content: 'think.' }) +
  delta({ content: 'Hé' }) +
  delta({ content: 'llo: data: [DONE]\n' }) +
  event({
    choices: [{ index: 0, delta: {}, finish_reason: 'stop' }],
    timings: { predicted_n: 5, predicted_per_second: 12.5 },
  }) +
  'data: [DONE]\n\n'

function read(...pieces: string[]): Answer {
  const reader = new AnswerReader()
  for (const piece of pieces) reader.feed(piece)
  reader.end()
  return reader.answer
}

describe('AnswerReader', () => {
  it('reads a whole answer', () => {
    expect(read(STREAM)).toEqual({
      text: 'Héllo: data: [DONE]\n',
      thinking: 'First, think.',
      tokens: 5,
      speed: 12.5,
      finish: 'stop',
      host: 'peer 0123456789',
      progress: 'loading model: 40 %',
      error: null,
    })
  })

  it('reads the same answer from pieces of any size', () => {
    const whole = read(STREAM)
    for (let at = 0; at <= STREAM.length; at += 1) expect(read(STREAM.slice(0, at), STREAM.slice(at))).toEqual(whole)
    expect(read(...STREAM)).toEqual(whole)
    expect(read(STREAM.replaceAll('\n', '\r\n'))).toEqual(whole)
  })

  it('reports an error in the stream', () => {
    const answer = read(
      delta({ content: 'So far' }),
      event({ error: { message: 'the engine was lost', code: 'upstream_lost' } }),
    )
    expect(answer).toMatchObject({ text: 'So far', error: 'the engine was lost' })
    expect(read('data: {broken\n\n').error).not.toBeNull()
    expect(read(event({ error: 7 })).error).not.toBeNull()
  })

  it('ignores unknown shapes', () => {
    for (const value of [
      {},
      { choices: [] },
      { choices: [{}] },
      { choices: [{ delta: { content: 7 } }] },
      { usage: null },
    ]) {
      expect(read(event(value), delta({ content: 'x' }))).toMatchObject({ text: 'x', error: null, tokens: null })
    }
  })

  it('takes the token count from the usage if there are no timings', () => {
    expect(read(event({ choices: [], usage: { completion_tokens: 9 } })).tokens).toBe(9)
  })
})

describe('ThinkingSplitter', () => {
  const split = (text: string, size: number): { text: string; thinking: string } => {
    const splitter = new ThinkingSplitter()
    const found = { text: '', thinking: '' }
    const take = (part: { text: string; thinking: string }): void => {
      found.text += part.text
      found.thinking += part.thinking
    }
    for (let at = 0; at < text.length; at += size) take(splitter.feed(text.slice(at, at + size)))
    take(splitter.end())
    return found
  }

  it.each([
    ['<think>a < b</think>\n\nyes', { thinking: 'a < b', text: 'yes' }],
    ['  \n<think>x</think>y</think>', { thinking: 'x', text: 'y</think>' }],
    ['no <think>here</think>', { thinking: '', text: 'no <think>here</think>' }],
    ['<think>never ends </thin', { thinking: 'never ends </thin', text: '' }],
    ['<thi', { thinking: '', text: '<thi' }],
    ['', { thinking: '', text: '' }],
  ])('is told apart in %j, however it is cut', (text, expected) => {
    for (const size of [1, 2, 3, 7, 100]) expect(split(text, size)).toEqual(expected)
  })
})
