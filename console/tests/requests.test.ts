import { describe, expect, it } from 'vitest'
import type { AttemptStatus, RequestStatus } from '../src/api'
import { isFailed, matches, timelineOf, tokensText } from '../src/mesh/requests'
import { node } from './fixtures'

function attempt(more: Partial<AttemptStatus> = {}): AttemptStatus {
  return {
    number: 1,
    target: 'engine',
    node: '',
    started_seconds: 0,
    connect_seconds: null,
    first_byte_seconds: null,
    duration_seconds: null,
    outcome: 'answered',
    error: '',
    ...more,
  }
}

function request(more: Partial<RequestStatus> = {}): RequestStatus {
  return {
    id: 'req_1',
    api: 'openai',
    path: '/v1/chat/completions',
    model: 'm',
    caller: 'local',
    target: 'engine',
    node: '',
    status: 200,
    outcome: 'answered',
    error: '',
    stream: true,
    started_at: 0,
    queue_seconds: null,
    first_byte_seconds: null,
    duration_seconds: null,
    prompt_tokens: null,
    cached_tokens: null,
    completion_tokens: null,
    attempts: [],
    ...more,
  }
}

const everything = { text: '', failedOnly: false }

describe('timelineOf', () => {
  it('shows queue, connect, first byte and stream of each attempt', () => {
    const found = timelineOf(
      request({
        queue_seconds: 0.5,
        duration_seconds: 4,
        attempts: [
          attempt({ started_seconds: 0.5, connect_seconds: 0.25, duration_seconds: 0.5, outcome: 'failed' }),
          attempt({
            number: 2,
            started_seconds: 1,
            connect_seconds: 0.25,
            first_byte_seconds: 1,
            duration_seconds: 3,
          }),
        ],
      }),
    )
    expect(found.seconds).toBe(4)
    expect(found.rows.map((row) => row.segments)).toEqual([
      [{ kind: 'queue', from: 0, to: 0.5 }],
      [
        { kind: 'connect', from: 0.5, to: 0.75 },
        { kind: 'wait', from: 0.75, to: 1 },
      ],
      [
        { kind: 'connect', from: 1, to: 1.25 },
        { kind: 'wait', from: 1.25, to: 2 },
        { kind: 'stream', from: 2, to: 4 },
      ],
    ])
  })

  it('shows an attempt that never connected as connecting', () => {
    const found = timelineOf(request({ attempts: [attempt({ duration_seconds: 5, outcome: 'failed' })] }))
    expect(found.rows[0]?.segments).toEqual([{ kind: 'connect', from: 0, to: 5 }])
    expect(found.seconds).toBe(5)
  })

  it('has a positive length without any time', () => {
    expect(timelineOf(request({ attempts: [attempt()] })).seconds).toBeGreaterThan(0)
    expect(timelineOf(request()).rows).toEqual([])
  })
})

describe('matches', () => {
  const nodes = [node('me', { here: true, name: 'workbench' }), node('0123456789ab', { name: 'amber' })]
  const shown = (one: RequestStatus, text: string): boolean => matches(one, { text, failedOnly: false }, nodes)

  it('finds a request by id, model, node name and the errors of its attempts', () => {
    const one = request({
      id: 'req_abc',
      model: 'Qwen3-8B',
      target: 'peer 0123456789',
      attempts: [attempt({ error: 'connection reset' })],
    })
    for (const text of ['', 'REQ_ABC', 'qwen', 'amber', 'workbench', 'reset', '200'])
      expect(shown(one, text)).toBe(true)
    expect(shown(one, 'cedar')).toBe(false)
  })

  it('leaves out what did not fail if only failed requests are wanted', () => {
    const failed = { ...everything, failedOnly: true }
    expect(matches(request(), failed, nodes)).toBe(false)
    expect(matches(request({ outcome: 'abandoned', status: null }), failed, nodes)).toBe(false)
    for (const outcome of ['refused', 'failed', 'lost'] as const)
      expect(matches(request({ outcome }), failed, nodes)).toBe(true)
  })
})

describe('isFailed', () => {
  it('counts an error status of a target as failed', () => {
    expect(isFailed(request({ status: 400 }))).toBe(true)
    expect(isFailed(request({ status: null, outcome: null }))).toBe(false)
  })
})

describe('tokensText', () => {
  it('shows cached tokens if there are any', () => {
    expect(tokensText(request({ prompt_tokens: 900, cached_tokens: 800, completion_tokens: 40 }))).toBe(
      '900 (800 cached) + 40',
    )
    expect(tokensText(request({ prompt_tokens: 9, cached_tokens: 0, completion_tokens: null }))).toBe('9 + ?')
    expect(tokensText(request())).toBe('')
  })
})
