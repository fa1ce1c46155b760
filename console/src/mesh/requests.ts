// The last API requests: filter, texts and timelines. Pure.

import type { AttemptStatus, Outcome, RequestStatus } from '../api'
import { targetText, type MeshNode } from './nodes'

export interface RequestFilter {
  text: string
  failedOnly: boolean
}

const FAILED: readonly (Outcome | null)[] = ['refused', 'failed', 'lost']

export const OUTCOME_TEXTS: Record<Outcome, string> = {
  answered: 'answered',
  refused: 'refused',
  failed: 'failed',
  lost: 'interrupted',
  abandoned: 'cancelled',
}

export function outcomeText(outcome: Outcome | null): string {
  return outcome === null ? 'active' : OUTCOME_TEXTS[outcome]
}

export function isFailed(request: RequestStatus): boolean {
  return FAILED.includes(request.outcome) || (request.status ?? 0) >= 400
}

// Whether a request is shown: the text may be part of its id, model, API, path, node, caller or an error.
export function matches(request: RequestStatus, filter: RequestFilter, nodes: readonly MeshNode[]): boolean {
  if (filter.failedOnly && !isFailed(request)) return false
  const text = filter.text.trim().toLowerCase()
  if (text === '') return true
  const { id, model, api, path, caller, error, attempts } = request
  const fields = [id, model, api, path, caller, error, outcomeText(request.outcome), String(request.status ?? '')]
  const targets = [request.target, ...attempts.map((attempt) => attempt.target)]
  fields.push(...targets, ...targets.map((target) => targetText(target, nodes)))
  fields.push(...attempts.map((attempt) => attempt.error))
  return fields.some((field) => field.toLowerCase().includes(text))
}

// Prompt tokens, how many of them came from the prompt cache, and completion tokens.
export function tokensText(request: RequestStatus): string {
  const { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: completion } = request
  if (prompt === null && completion === null) return ''
  const cache = cached !== null && cached > 0 ? ` (${cached} cached)` : ''
  return `${prompt ?? '?'}${cache} + ${completion ?? '?'}`
}

export type SegmentKind = 'queue' | 'connect' | 'wait' | 'stream'

// Seconds from the request's arrival.
export interface Segment {
  kind: SegmentKind
  from: number
  to: number
}

export interface TimelineRow {
  attempt: AttemptStatus | null // null: the queue
  segments: Segment[]
}

export interface Timeline {
  seconds: number // length of the whole timeline
  rows: TimelineRow[]
}

export const SEGMENT_TEXTS: Record<SegmentKind, string> = {
  queue: 'queue',
  connect: 'connect',
  wait: 'first byte',
  stream: 'stream',
}

export function timelineOf(request: RequestStatus): Timeline {
  const rows: TimelineRow[] = []
  const queue = request.queue_seconds ?? 0
  if (queue > 0) rows.push({ attempt: null, segments: [{ kind: 'queue', from: 0, to: queue }] })
  for (const attempt of request.attempts) rows.push({ attempt, segments: segmentsOf(attempt) })
  const ends = rows.flatMap((row) => row.segments.map((segment) => segment.to))
  return { seconds: Math.max(request.duration_seconds ?? 0, ...ends, 0.001), rows }
}

// An attempt connects, waits for the first byte, and streams; it may end in each of them.
function segmentsOf(attempt: AttemptStatus): Segment[] {
  const { started_seconds: start, connect_seconds: connect, first_byte_seconds: first } = attempt
  const end = attempt.duration_seconds ?? first ?? connect ?? 0
  const marks: [SegmentKind, number][] = [
    ['connect', Math.min(connect ?? (first === null ? end : 0), end)],
    ['wait', Math.min(first ?? end, end)],
    ['stream', end],
  ]
  const found: Segment[] = []
  let from = 0
  for (const [kind, to] of marks) {
    if (to > from) found.push({ kind, from: start + from, to: start + to })
    from = Math.max(from, to)
  }
  return found
}
