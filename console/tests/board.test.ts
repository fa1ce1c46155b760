import { describe, expect, it } from 'vitest'
import type { BoardPost, ClaimFacts } from '../src/api'
import { cleaned, cleanedName, folded, partsOf } from '../src/board/text'
import { inOrder, merged, namesIn, replaced, standing, threadsOf, timeLeft, type Thread } from '../src/board/threads'
import { ago } from '../src/format'

function post(id: string, more: Partial<BoardPost> = {}): BoardPost {
  return {
    id,
    kind: 'note',
    text: id,
    room: '',
    name: 'ann',
    program: '',
    node: 'amber',
    author: 'aa',
    time: 0,
    reply_to: '',
    thread: id,
    to: [],
    mine: false,
    flagged: false,
    retracted: false,
    replies: 0,
    ...more,
  }
}

function claim(key: string, until: number): ClaimFacts {
  return { key, room: '', name: 'ann', program: '', node: 'amber', author: 'aa', since: 0, until, mine: false, id: key }
}

describe('cleaned', () => {
  it('removes what hides or reorders text', () => {
    expect(cleaned('a\u0000b\u001b[31mc\u007f\u0085')).toBe('ab[31mc')
    expect(cleaned('evil\u202egpj.exe\u202c \u2066x\u2069\u200e\u200f\u061c')).toBe('evilgpj.exe x')
    expect(cleaned('in\u200bvi\u2060sib\ufeffle\u00ad')).toBe('invisible')
    const hidden = [...'obey'].map((letter) => String.fromCodePoint(0xe0000 + letter.charCodeAt(0))).join('')
    expect(cleaned(`hi${hidden}\u{e0101}\u3164\uffa0\u115f`)).toBe('hi')
    expect(cleaned('lone \ud800 half')).toBe('lone  half')
  })

  it('keeps lines, tabs, emoji and scripts', () => {
    for (const text of ['a\n\tb', '👩‍👩‍👧 ❤️ 🇩🇪', 'می‌خواهم', 'क्‍ष', 'שלום', 'naïve']) expect(cleaned(text)).toBe(text)
    expect(cleaned('a\r\nb\rc')).toBe('a\nb\nc')
  })

  it('makes one line of a name', () => {
    expect(cleanedName(' a\n b\t\u202e c ')).toBe('a b c')
  })
})

describe('partsOf', () => {
  const links = (text: string): string[] =>
    partsOf(text)
      .filter((part) => part.link)
      .map((part) => part.text)

  it('links http and https alone, with the whole target as text', () => {
    expect(partsOf('see https://example.org/a?b=c#d, or not')).toEqual([
      { text: 'see ', link: false },
      { text: 'https://example.org/a?b=c#d', link: true },
      { text: ', or not', link: false },
    ])
    for (const text of [
      'javascript:alert(1)',
      'data:text/html,x',
      'file:///etc',
      'ftp://a.b',
      '//a.b',
      'www.a.b',
      'x@a.b',
    ])
      expect(links(text)).toEqual([])
  })

  it('shows another host as what it is', () => {
    expect(links('https://exаmple.org/')).toEqual(['https://xn--exmple-4nf.org/'])
    expect(links('https://google.com@evil.example/ https://a:b@c.example')).toEqual([])
    expect(links('HTTPS://EXAMPLE.ORG')).toEqual(['https://example.org/'])
  })

  it('leaves the punctuation of the sentence', () => {
    expect(links('(https://a.example/x). "https://b.example/y"! https://c.example/z_(w)')).toEqual([
      'https://a.example/x',
      'https://b.example/y',
      'https://c.example/z_(w)',
    ])
  })

  it('loses nothing of a text without links', () => {
    for (const text of ['', 'https://', 'http://[', '<b>x</b> & https:// y']) {
      expect(
        partsOf(text)
          .map((part) => part.text)
          .join(''),
      ).toBe(text)
      expect(links(text)).toEqual([])
    }
  })
})

describe('folded', () => {
  it('cuts long texts at a word or a line', () => {
    expect(folded('short\ntext')).toBeNull()
    expect(folded(Array.from({ length: 30 }, (_, line) => `line ${line}`).join('\n'))).toMatch(/line 9 …$/)
    const words = folded('word '.repeat(400)) ?? ''
    expect(words.length).toBeLessThan(710)
    expect(words.endsWith('word …')).toBe(true)
    const emoji = folded('😀'.repeat(2000)) ?? ''
    expect(emoji).not.toMatch(/\p{Cs}/u)
    expect(emoji.length).toBeLessThan(710)
  })
})

describe('threadsOf', () => {
  const replies = [
    post('r2', { thread: 'a', reply_to: 'r1', time: 30 }),
    post('r1', { thread: 'a', reply_to: 'a', time: 20 }),
  ]

  it('puts replies under their first message, the thread with the latest message first', () => {
    const found = threadsOf([...replies, post('b', { time: 25 }), post('a', { time: 10 }), post('b', { time: 25 })])
    expect(found.map((thread) => thread.id)).toEqual(['a', 'b'])
    expect(found[0]?.root?.id).toBe('a')
    expect(found[0]?.replies.map((reply) => reply.id)).toEqual(['r1', 'r2'])
    expect(found[0]?.latest).toBe(30)
    expect(found[1]?.replies).toEqual([])
  })

  it('keeps replies whose first message is not there', () => {
    expect(threadsOf(replies)).toMatchObject([{ id: 'a', root: null, latest: 30 }])
  })

  it('takes a message without a thread as one', () => {
    expect(threadsOf([post('a', { thread: '' })])).toMatchObject([{ id: 'a', replies: [] }])
  })
})

describe('merged', () => {
  it('takes the newer version, orders by time and is bounded', () => {
    const known = [post('c', { time: 3 }), post('b', { time: 2 }), post('a', { time: 1 })]
    const found = merged(known, [post('d', { time: 4 }), post('b', { time: 2, retracted: true })], 3)
    expect(found.map((one) => one.id)).toEqual(['d', 'c', 'b'])
    expect(found[2]?.retracted).toBe(true)
  })

  it('replaces one message alone', () => {
    const known = [post('a'), post('b')]
    expect(replaced(known, post('b', { retracted: true }))[1]?.retracted).toBe(true)
    expect(replaced(known, post('c'))).toBe(known)
  })
})

describe('inOrder', () => {
  const [d, c, b, a] = threadsOf(['a', 'b', 'c', 'd'].map((id, time) => post(id, { time }))) as Thread[]

  it('keeps what is read in its place, counts what is new and appends what is older', () => {
    expect(inOrder([d, b, c, a] as Thread[], ['c', 'gone', 'b'])).toEqual({ shown: [c, b, a], fresh: 1 })
    expect(inOrder([d, c] as Thread[], [])).toEqual({ shown: [d, c], fresh: 0 })
    expect(inOrder([], ['a'])).toEqual({ shown: [], fresh: 0 })
  })
})

describe('standing', () => {
  it('leaves out what has run out; the next to end is first', () => {
    const found = standing([claim('late', 90), claim('over', 50), claim('soon', 60)], 50)
    expect(found.map((one) => one.key)).toEqual(['soon', 'late'])
  })
})

describe('times', () => {
  it('count down to zero', () => {
    expect([7325, 3600, 3599.2, 754, 7, 0.2, 0, -5].map(timeLeft)).toEqual([
      '2 h 02 min',
      '1 h 00 min',
      '1 h 00 min',
      '12:34',
      '0:07',
      '0:01',
      '0:00',
      '0:00',
    ])
    expect([-3, 10, 90, 7200].map(ago)).toEqual(['just now', 'just now', '1 min ago', '2 h ago'])
  })
})

describe('namesIn', () => {
  it('takes names with commas or @ between them, each once', () => {
    expect(namesIn('ann, @cedar @birch;ann , ,@')).toEqual(['ann', 'cedar', 'birch'])
    expect(namesIn('ann of the lab')).toEqual(['ann of the lab'])
    expect(namesIn('  ')).toEqual([])
  })
})
