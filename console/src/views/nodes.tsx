// The nodes as a list: status, models, load, round trip, version and memory.

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'
import { changeText, loadText, transportText, statusText, type MeshNode } from '../mesh/nodes'
import { Badge } from '../parts/basics'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { nodes, status } from '../state'
import { awayText, counted, duration, milliseconds, speed, tokens } from '../format'
import { NodeDetails, toneOf } from './node-details'
import { Machine } from './memory'

const STATUS_ORDER = ['alive', 'suspect', 'unverified', 'left', 'dead']

export function Nodes(): JSX.Element {
  const [text, setText] = useState('')
  const [chosen, setChosen] = useState<string | null>(null)
  const list = nodes.value
  const shown = useMemo(
    () => list.filter((node) => matches(node, text.trim().toLowerCase())).toSorted(inOrder),
    [list, text],
  )
  const node = list.find((one) => one.id === chosen) ?? null
  return (
    <div
      class="split"
      onKeyDown={(event) => {
        if (event.key === 'Escape') setChosen(null)
      }}
    >
      <section class="page" aria-labelledby="nodes-title">
        <div class="head">
          <h1 id="nodes-title">Nodes</h1>
          <p>
            {headline(list)}
            {status.value !== null && `, this node up ${duration(status.value.uptime_seconds)}`}
          </p>
          {list.length > 6 && (
            <label class="search">
              <Icon name="search" size={16} />
              <span class="unseen">Find a node by name, model or state</span>
              <input
                type="search"
                placeholder="Name, model or state"
                value={text}
                onInput={(event) => setText(event.currentTarget.value)}
              />
            </label>
          )}
        </div>
        <Engine />
        <Away />
        <ul class="rows">
          {shown.map((one) => (
            <Row key={one.id} node={one} chosen={one.id === chosen} choose={setChosen} />
          ))}
        </ul>
        {shown.length === 0 && <p class="quiet">No node matches the filter.</p>}
      </section>
      {node !== null && <NodeDetails node={node} close={() => setChosen(null)} />}
    </div>
  )
}

function headline(list: readonly MeshNode[]): string {
  const backends = list.filter((node) => node.role === 'backend').length
  const clients = list.filter((node) => node.role === 'client' && !node.here).length
  const texts = [counted(list.length - backends - clients, 'node')]
  if (backends > 0) texts.push(counted(backends, 'backend'))
  if (clients > 0) texts.push(counted(clients, 'client'))
  return texts.join(', ')
}

function matches(node: MeshNode, text: string): boolean {
  if (text === '') return true
  const fields = [node.name, node.id, statusText(node), ...node.models.map((model) => model.name)]
  return fields.some((field) => field.toLowerCase().includes(text))
}

function inOrder(one: MeshNode, other: MeshNode): number {
  if (one.here !== other.here) return one.here ? -1 : 1
  const by = STATUS_ORDER.indexOf(one.status) - STATUS_ORDER.indexOf(other.status)
  if (by !== 0) return by
  const serves = Number(other.models.length > 0) - Number(one.models.length > 0)
  return serves !== 0 ? serves : one.name.localeCompare(other.name) || (one.id < other.id ? -1 : 1)
}

// Members that are switched off or out of reach, since when, and what they served.
function Away(): JSX.Element | null {
  const away = status.value?.mesh?.away ?? []
  return away.length === 0 ? null : <p class="quiet">Away: {awayText(away, Date.now())}</p>
}

// The engine of this machine while it is being built, or why it failed.
function Engine(): JSX.Element | null {
  const engine = status.value?.engine
  if (engine === undefined || engine.phase === 'ready' || engine.phase === 'unknown') return null
  const progress = engine.progress
  const failed = engine.phase === 'failed'
  return (
    <p class={`notice${failed ? ' bad' : ''}`} role="status">
      {failed
        ? `The engine build failed: ${engine.reason} ${engine.advice}`
        : `The engine is being prepared${progress === null ? '' : `: ${progress.detail || progress.stage}`}.`}
    </p>
  )
}

interface RowProps {
  node: MeshNode
  chosen: boolean
  choose: (id: string | null) => void
}

const Row = memo(function Row({ node, chosen, choose }: RowProps): JSX.Element {
  const load = loadText(node)
  const context = Math.max(0, ...node.models.map((model) => model.context))
  const fastest = Math.max(0, ...node.models.map((model) => model.speed ?? 0))
  return (
    <li class={`row ${node.status}${chosen ? ' chosen' : ''}`}>
      <button type="button" class="title" aria-expanded={chosen} onClick={() => choose(chosen ? null : node.id)}>
        <i class={`dot ${node.role} ${node.status}`} />
        <span class="name">{node.name}</span>
        {node.here && <span class="quiet">this node</span>}
      </button>
      <Badge tone={toneOf(node)}>{statusText(node)}</Badge>
      <p class="summary">
        {node.models.length === 0 ? <span class="quiet">no model loaded</span> : names(node)}
        {changeText(node) !== '' && <span class="next">{changeText(node)}</span>}
      </p>
      <p class="numbers">
        {load !== '' && <span>{load}</span>}
        {context > 0 && <span title="Longest context">{tokens(context)} context</span>}
        {fastest > 0 && <span title="Speed of the last answer">{speed(fastest)}</span>}
        {node.rtt !== null && (
          <span title={`Round trip${node.transport === null ? '' : ` by ${transportText(node)}`}`}>
            {milliseconds(node.rtt)} away
          </span>
        )}
        {node.version !== '' && <span>v{node.version}</span>}
      </p>
      <Machine node={node} />
    </li>
  )
})

function names(node: MeshNode): string {
  const shown = node.models
    .slice(0, 3)
    .map((model) => (model.phase === 'serving' ? model.name : `${model.name} (${model.phase})`))
  return node.models.length > 3 ? `${shown.join(', ')} and ${node.models.length - 3} more` : shown.join(', ')
}
