// One API request: what happened to it, attempt by attempt.

import type { ComponentChildren, JSX } from 'preact'
import type { RequestStatus } from '../api'
import { isForeign, targetText } from '../mesh/nodes'
import {
  outcomeText,
  SEGMENT_TEXTS,
  timelineOf,
  tokensText,
  type Segment,
  type SegmentKind,
  type TimelineRow,
} from '../mesh/requests'
import { Badge, Copy } from '../parts/basics'
import { Icon } from '../parts/icons'
import { nodes } from '../state'
import { seconds } from '../format'
import { toneOfRequest } from './requests'

const SEGMENTS: readonly SegmentKind[] = ['queue', 'connect', 'wait', 'stream']

// The nodes of other members that got the request: one that failed has read it, too.
function readers(request: RequestStatus): string[] {
  const targets = [...request.attempts.map((attempt) => attempt.target), request.target]
  const foreign = targets.filter((target) => isForeign(target, nodes.value))
  return [...new Set(foreign.map((target) => targetText(target, nodes.value)))]
}

export function RequestDetails({ request, close }: { request: RequestStatus; close: () => void }): JSX.Element {
  const timeline = timelineOf(request)
  return (
    <aside class="details request" aria-label={`Request ${request.id}`}>
      <header>
        <div>
          <h2>Request</h2>
          <p class="id">{request.id}</p>
        </div>
        <div class="actions">
          <Copy text={request.id} label="Copy the request id" quiet />
          <button type="button" class="tool" onClick={close} title="Close">
            <Icon name="close" />
            <span class="unseen">Close</span>
          </button>
        </div>
      </header>
      <p class="badges">
        <Badge tone={toneOfRequest(request)}>
          {request.status ?? ''} {outcomeText(request.outcome)}
        </Badge>
      </p>
      {request.error !== '' && <p class="reason">{request.error}</p>}
      <section>
        <h3>Timeline</h3>
        {timeline.rows.length === 0 ? (
          <p class="quiet">No target was asked.</p>
        ) : (
          <>
            <ol class="timeline">
              {timeline.rows.map((row) => (
                <Row key={row.attempt?.number ?? 0} row={row} total={timeline.seconds} />
              ))}
            </ol>
            <ul class="segments" aria-label="Colours of the timeline">
              {SEGMENTS.map((kind) => (
                <li key={kind}>
                  <i class={`segment ${kind}`} />
                  {SEGMENT_TEXTS[kind]}
                </li>
              ))}
            </ul>
          </>
        )}
      </section>
      <dl class="facts">
        <Fact name="Time">{new Date(request.started_at * 1000).toLocaleString()}</Fact>
        <Fact name="Endpoint">
          <span class="mono">{request.path}</span>
          {request.stream ? ', streamed' : ''}
        </Fact>
        {request.model !== '' && <Fact name="Model">{request.model}</Fact>}
        <Fact name="Caller">{callerText(request.caller)}</Fact>
        {request.target !== '' && <Fact name="Answered by">{targetText(request.target, nodes.value)}</Fact>}
        {readers(request).length > 0 && <Fact name="Read by other members">{readers(request).join(', ')}</Fact>}
        {request.first_byte_seconds !== null && <Fact name="First byte">{seconds(request.first_byte_seconds)}</Fact>}
        {request.duration_seconds !== null && <Fact name="Duration">{seconds(request.duration_seconds)}</Fact>}
        {tokensText(request) !== '' && <Fact name="Tokens: prompt + completion">{tokensText(request)}</Fact>}
      </dl>
    </aside>
  )
}

function Row({ row, total }: { row: TimelineRow; total: number }): JSX.Element {
  const { attempt, segments } = row
  const title =
    attempt === null ? 'Waiting for a free slot' : `${attempt.number}. ${targetText(attempt.target, nodes.value)}`
  const times = segments.map(segmentText).join(' · ')
  return (
    <li>
      <p>
        <span class="name">{title}</span>
        {attempt !== null && <span class="quiet">{outcomeText(attempt.outcome)}</span>}
      </p>
      <div class="track" role="img" aria-label={`${title}: ${times || 'no time'}`}>
        {segments.map((segment) => (
          <span
            key={segment.kind}
            class={segment.kind}
            style={{
              left: `${(segment.from / total) * 100}%`,
              width: `${((segment.to - segment.from) / total) * 100}%`,
            }}
          />
        ))}
      </div>
      <small>{times}</small>
      {attempt !== null && attempt.error !== '' && <p class="error">{attempt.error}</p>}
    </li>
  )
}

function segmentText(segment: Segment): string {
  return `${SEGMENT_TEXTS[segment.kind]} ${seconds(segment.to - segment.from)}`
}

function callerText(caller: string): string {
  if (caller === 'local') return 'this machine'
  return caller.startsWith('peer ') ? `peer ${targetText(caller, nodes.value)}` : caller
}

function Fact({ name, children }: { name: string; children: ComponentChildren }): JSX.Element {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  )
}
