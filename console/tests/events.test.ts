import { describe, expect, test } from 'vitest'
import { Events, type ServerEvent } from '../src/events'

const STREAM =
  'event: status\nid: 1\ndata: {"a":1}\n\n: still here\n\nevent: blackboard\ndata: {"cursor":"c"}\n\ndata: {"a":"x: y"}\n\n'
const FOUND: ServerEvent[] = [
  { name: 'status', data: '{"a":1}' },
  { name: 'blackboard', data: '{"cursor":"c"}' },
  { name: 'message', data: '{"a":"x: y"}' },
]

describe('events', () => {
  test('are parsed from one piece', () => {
    expect(new Events().feed(STREAM)).toEqual(FOUND)
  })

  test('are parsed from pieces of any size', () => {
    for (let size = 1; size < STREAM.length; size += 1) {
      const events = new Events()
      const found: ServerEvent[] = []
      for (let at = 0; at < STREAM.length; at += size) found.push(...events.feed(STREAM.slice(at, at + size)))
      expect(found).toEqual(FOUND)
    }
  })

  test('that are incomplete are held back', () => {
    const events = new Events()
    expect(events.feed('event: status\ndata: 1\n')).toEqual([])
    expect(events.feed('\nevent')).toEqual([{ name: 'status', data: '1' }])
  })
})
