// The last API requests as a table, and the timeline of one of them.

import type { JSX } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import type { Outcome, RequestStatus } from '../api'
import { isForeign, targetText } from '../mesh/nodes'
import { isFailed, matches, outcomeText, tokensText } from '../mesh/requests'
import { Badge, Empty, type Tone } from '../parts/basics'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { pollRequests, requests, requestsFailed } from '../requests'
import { go, route } from '../route'
import { nodes } from '../state'
import '../style/requests.css'
import { counted, seconds } from '../format'
import { RequestDetails } from './request-details'

const TONES: Record<Outcome, Tone> = {
  answered: 'good',
  refused: 'worrying',
  failed: 'bad',
  lost: 'bad',
  abandoned: 'plain',
}

export function toneOfRequest(request: RequestStatus): Tone {
  if (request.outcome === null) return 'busy'
  return request.outcome === 'answered' && isFailed(request) ? 'bad' : TONES[request.outcome]
}

export function Requests(): JSX.Element {
  const [text, setText] = useState('')
  const [failedOnly, setFailedOnly] = useState(false)
  useEffect(pollRequests, [])
  const list = requests.value
  const known = nodes.value
  const shown = (list ?? []).filter((request) => matches(request, { text, failedOnly }, known))
  const chosen = list?.find((request) => request.id === route.value.rest) ?? null
  const choose = (id: string): void => go('requests', id === chosen?.id ? '' : id, { replace: true })
  return (
    <div
      class="split"
      onKeyDown={(event) => {
        if (event.key === 'Escape' && chosen !== null) choose(chosen.id)
      }}
    >
      <section class="page" aria-labelledby="requests-title">
        <div class="head">
          <h1 id="requests-title">Requests</h1>
          <p>{list === null ? '' : headline(list)}</p>
          <label class="search">
            <Icon name="search" size={16} />
            <span class="unseen">Filter requests by id, model, node or error</span>
            <input
              type="search"
              placeholder="Id, model, node or error"
              value={text}
              onInput={(event) => setText(event.currentTarget.value)}
            />
          </label>
          <label class="check">
            <input
              type="checkbox"
              checked={failedOnly}
              onChange={(event) => setFailedOnly(event.currentTarget.checked)}
            />
            Failed only
          </label>
        </div>
        {requestsFailed.value && (
          <p class="notice worrying" role="status">
            The requests cannot be loaded. Retrying.
          </p>
        )}
        {list === null && !requestsFailed.value && (
          <p class="quiet" role="status">
            Loading the requests …
          </p>
        )}
        {list?.length === 0 && (
          <Empty title="No requests yet">
            <p>The last 200 requests to the API of this node are listed here.</p>
          </Empty>
        )}
        {list !== null && list.length > 0 && shown.length === 0 && <p class="quiet">No request matches the filter.</p>}
        {shown.length > 0 && <Table list={shown} chosen={chosen?.id ?? ''} choose={choose} />}
      </section>
      {chosen !== null && <RequestDetails request={chosen} close={() => choose(chosen.id)} />}
    </div>
  )
}

function headline(list: readonly RequestStatus[]): string {
  const failed = list.filter(isFailed).length
  return failed === 0 ? counted(list.length, 'request') : `${counted(list.length, 'request')}, ${failed} failed`
}

interface TableProps {
  list: readonly RequestStatus[]
  chosen: string
  choose: (id: string) => void
}

function Table({ list, chosen, choose }: TableProps): JSX.Element {
  return (
    <div class="table requests" role="region" aria-label="Requests" tabIndex={0}>
      <table>
        <thead>
          <tr>
            <th scope="col">Time</th>
            <th scope="col">Model</th>
            <th scope="col" class="wide">
              API
            </th>
            <th scope="col" class="node">
              Node
            </th>
            <th scope="col">Outcome</th>
            <th scope="col" class="number wide">
              Queue
            </th>
            <th scope="col" class="number middle">
              First token
            </th>
            <th scope="col" class="number">
              Duration
            </th>
            <th scope="col" class="number wide">
              Tokens
            </th>
          </tr>
        </thead>
        <tbody>
          {list.map((request) => (
            <Row
              key={request.id + request.started_at}
              request={request}
              node={targetText(request.target, nodes.value)}
              foreign={isForeign(request.target, nodes.value)}
              chosen={request.id === chosen}
              choose={choose}
            />
          ))}
        </tbody>
      </table>
    </div>
  )
}

interface RowProps {
  request: RequestStatus
  node: string
  foreign: boolean
  chosen: boolean
  choose: (id: string) => void
}

const Row = memo(function Row({ request, node, foreign, chosen, choose }: RowProps): JSX.Element {
  return (
    <tr class={chosen ? 'chosen' : ''} onClick={() => choose(request.id)}>
      <td>
        <button
          type="button"
          class="time"
          aria-expanded={chosen}
          title={request.id}
          onClick={(event) => {
            event.stopPropagation()
            choose(request.id)
          }}
        >
          {new Date(request.started_at * 1000).toLocaleTimeString([], { hourCycle: 'h23' })}
          <span class="unseen"> {request.id}</span>
        </button>
      </td>
      <td class="model">{request.model || request.path}</td>
      <td class="wide">{request.api}</td>
      <td class="node">
        {node} {foreign && <small title="It read the prompt.">another member</small>}
      </td>
      <td>
        <Badge tone={toneOfRequest(request)}>
          {request.status ?? ''} {outcomeText(request.outcome)}
        </Badge>
      </td>
      <td class="number wide">{timeText(request.queue_seconds)}</td>
      <td class="number middle">{timeText(request.first_byte_seconds)}</td>
      <td class="number">{timeText(request.duration_seconds)}</td>
      <td class="number wide">{tokensText(request)}</td>
    </tr>
  )
})

function timeText(value: number | null): string {
  return value === null ? '' : seconds(value)
}
