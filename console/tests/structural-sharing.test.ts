import { describe, expect, it } from 'vitest'
import { keepUnchanged } from '../src/structural-sharing'

describe('keepUnchanged', () => {
  it('returns the old object if nothing differs', () => {
    const before = { a: [1, { b: null }], c: 'x' }
    expect(keepUnchanged(before, structuredClone(before))).toBe(before)
  })

  it('keeps equal parts and replaces the others', () => {
    const before = {
      peers: [
        { id: 'a', rtt: 1 },
        { id: 'b', rtt: 2 },
      ],
      name: 'x',
    }
    const after = keepUnchanged(before, {
      peers: [
        { id: 'a', rtt: 1 },
        { id: 'b', rtt: 3 },
      ],
      name: 'x',
    })
    expect(after).toEqual({
      peers: [
        { id: 'a', rtt: 1 },
        { id: 'b', rtt: 3 },
      ],
      name: 'x',
    })
    expect(after.peers[0]).toBe(before.peers[0])
    expect(after.peers[1]).not.toBe(before.peers[1])
  })

  it('identifies list items by id when they move', () => {
    const [a, b] = [
      { id: 'a', n: 1 },
      { id: 'b', n: 2 },
    ]
    const after = keepUnchanged(
      [a, b],
      [
        { id: 'b', n: 2 },
        { id: 'a', n: 1 },
        { id: 'c', n: 3 },
      ],
    )
    expect(after.map((item) => item.id)).toEqual(['b', 'a', 'c'])
    expect(after[0]).toBe(b)
    expect(after[1]).toBe(a)
  })

  it('vision what came, what went, and what became something else', () => {
    type Value = null | number | number[] | { [key: string]: number | null | undefined }
    const pairs: [Value, Value][] = [
      [{ a: 1 }, { a: 1, b: null }],
      [{ a: 1, b: 2 }, { a: 1 }],
      [[1], { 0: 1 }],
      [[1, 2], [1]],
      [{ a: 1 }, null],
      [null, { a: 1 }],
      [1, [1]],
    ]
    for (const [before, after] of pairs) expect(keepUnchanged(before, structuredClone(after))).toEqual(after)
    expect(keepUnchanged(undefined, { a: 1 })).toEqual({ a: 1 })
  })
})
