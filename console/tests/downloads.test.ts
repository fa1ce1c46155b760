import { describe, expect, it } from 'vitest'
import { advanced, begun, downloadText, Lines, type DownloadState } from '../src/mesh/downloads'

const line = (event: object): string => JSON.stringify(event)
const after = (...events: object[]): DownloadState => events.map(line).reduce(advanced, begun('m'))

describe('Lines', () => {
  it('finds the same lines in pieces of any size', () => {
    const text = '{"event":"alive"}\n\n{"event":"complete","models":["m"]}\n'
    const whole = new Lines().feed(text)
    for (let size = 1; size < text.length; size += 1) {
      const lines = new Lines()
      const found: string[] = []
      for (let at = 0; at < text.length; at += size) found.push(...lines.feed(text.slice(at, at + size)))
      expect(found).toEqual(whole)
    }
  })
})

describe('a download', () => {
  it('adds up the files that are expected', () => {
    const state = after(
      { event: 'expected', files: { a: 3_000_000_000, b: 1_000_000_000 } },
      {
        event: 'progress',
        stage: 'downloading',
        file: 'a',
        source: 'amber',
        done: 1_000_000_000,
        total: 3_000_000_000,
      },
      { event: 'alive' },
    )
    expect(state.fraction).toBe(0.25)
    expect(downloadText(state)).toBe('downloading: 1.0 GB of 4.0 GB, from amber')
  })

  it('does not claim a fraction before a size is known', () => {
    const state = after({ event: 'progress', stage: 'connecting', file: 'a', detail: 'asking the hub' })
    expect([state.fraction, downloadText(state)]).toEqual([null, 'connecting: asking the hub'])
  })

  it('ends with the names of its models, or with what to do', () => {
    expect(after({ event: 'complete', models: ['m', 'draft'] })).toMatchObject({
      running: false,
      models: ['m', 'draft'],
      problem: '',
    })
    expect(after({ event: 'failed', message: 'No space left.', advice: 'Free 3 GB.' })).toMatchObject({
      running: false,
      problem: 'No space left. Free 3 GB.',
    })
  })

  it('ignores what it does not understand', () => {
    const state = begun('m')
    for (const text of ['', 'x', '{"event":"later"}', '{}']) expect(advanced(state, text)).toEqual(state)
  })
})
