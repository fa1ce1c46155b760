import { describe, expect, test } from 'vitest'
import { Events } from '../src/events'

const STREAM = 'event: status\nid: 1\ndata: {"a":1}\n\n: still here\n\nevent: status\nid: 2\ndata: {"a":"x: y"}\n\n'

describe('events', () => {
  test('are parsed from one piece', () => {
    expect(new Events().feed(STREAM)).toEqual(['{"a":1}', '{"a":"x: y"}'])
  })

  test('are parsed from pieces of any size', () => {
    for (let size = 1; size < STREAM.length; size += 1) {
      const events = new Events()
      const found: string[] = []
      for (let at = 0; at < STREAM.length; at += size) found.push(...events.feed(STREAM.slice(at, at + size)))
      expect(found).toEqual(['{"a":1}', '{"a":"x: y"}'])
    }
  })

  test('that are incomplete are held back', () => {
    const events = new Events()
    expect(events.feed('event: status\ndata: 1\n')).toEqual([])
    expect(events.feed('\nevent')).toEqual(['1'])
  })
})
