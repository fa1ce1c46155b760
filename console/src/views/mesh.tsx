// The mesh as a picture: nodes and this node's links to them, with the details of a selected node.

import type { JSX } from 'preact'
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import type { JoinPhase } from '../api'
import { layout, type Layout, type Size, type Position } from '../mesh/layout'
import { loadOf, transportText, statusText, type MeshNode } from '../mesh/nodes'
import { layersText } from '../mesh/splits'
import { memo } from '../parts/memo'
import { connection, idle, nodes, pipelines, status } from '../state'
import { awayText, counted, milliseconds } from '../format'
import { NodeDetails } from './node-details'
import { Idle } from './idle'
import { Pipelines } from './pipeline'

export function Mesh(): JSX.Element {
  const [chosen, setChosen] = useState<string | null>(null)
  const list = nodes.value
  const node = list.find((one) => one.id === chosen) ?? null
  return (
    <div
      class="split"
      onKeyDown={(event) => {
        if (event.key === 'Escape') setChosen(null)
      }}
    >
      <section class="stage" aria-labelledby="mesh-title">
        <Head list={list} />
        {idle.value && <Idle />}
        <Picture list={list} chosen={chosen} choose={setChosen} />
        <Legend list={list} />
      </section>
      {node !== null && <NodeDetails node={node} close={() => setChosen(null)} />}
    </div>
  )
}

function Head({ list }: { list: readonly MeshNode[] }): JSX.Element {
  const mesh = status.value?.mesh ?? null
  const living = list.filter((node) => node.status === 'alive' && isNode(node))
  const hosts = list.filter(
    (node) => node.status === 'alive' && (node.role === 'host' || node.role === 'backend'),
  ).length
  const suspect = list.filter((node) => node.status === 'suspect').length
  const all = list.filter((node) => isNode(node) && node.status !== 'dead' && node.status !== 'left').length
  if (connection.value === 'lost')
    return (
      <div class="head">
        <h1 id="mesh-title">{mesh === null ? 'This node' : 'Mesh'}</h1>
        <p aria-live="polite">last known: {counted(all, 'node')}</p>
      </div>
    )
  const texts = [
    all === living.length ? counted(all, 'node') : `${living.length} of ${all} nodes alive`,
    hosts === 0 ? 'no model served' : `${hosts} serving`,
  ]
  if (suspect > 0) texts.push(`${suspect} not responding`)
  if (mesh !== null && mesh.clients > 0) texts.push(counted(mesh.clients, 'client'))
  return (
    <div class="head">
      <h1 id="mesh-title">{mesh === null ? 'This node' : 'Mesh'}</h1>
      <p aria-live="polite">{texts.join(' · ')}</p>
      <Joining />
    </div>
  )
}

function isNode(node: MeshNode): boolean {
  return node.role !== 'backend' && (node.role !== 'client' || node.here)
}

const TROUBLE: Partial<Record<JoinPhase, string>> = {
  failed: 'Cannot connect to the mesh',
  refused: 'The mesh refused the invite',
  duplicate: 'Left the mesh',
  expelled: 'No member of the mesh any more',
}

// The state of the join, while it is under way or after it failed.
function Joining(): JSX.Element | null {
  const known = status.value
  if (known === null) return null
  if (known.mesh === null)
    return known.mesh_reason === '' ? null : <p class="notice">Running without a mesh: {known.mesh_reason}</p>
  const { phase, reason, join_attempts: attempts } = known.mesh
  if (phase === 'alone' || phase === 'joined') return null
  if (phase === 'alone for now') {
    const away = awayText(known.mesh.away, Date.now())
    return (
      <p class="notice" role="status">
        Alone for now{away === '' ? '' : `: ${away}`}
      </p>
    )
  }
  return (
    <div class={`notice${TROUBLE[phase] === undefined ? '' : ' worrying'}`} role="status">
      <p>
        {TROUBLE[phase] ?? 'Joining the mesh'}
        {reason === '' ? '' : `: ${reason}`}
      </p>
      <ul>
        {attempts.map((attempt) => (
          <li key={attempt.peer + attempt.addresses.join()}>
            {attempt.addresses.join(' or ') || attempt.peer.slice(0, 10)}: {attempt.state}
            {attempt.reason === '' ? '' : ` (${attempt.reason})`}
          </li>
        ))}
      </ul>
    </div>
  )
}

interface PictureProps {
  list: readonly MeshNode[]
  chosen: string | null
  choose: (id: string | null) => void
}

function Picture({ list, chosen, choose }: PictureProps): JSX.Element {
  const [frame, size] = useSize()
  const found = useMemo(() => layout(list, size), [list, size])
  const [at, setAt] = useState<string | null>(null)
  const focused = at !== null && list.some((node) => node.id === at) ? at : (list[0]?.id ?? null)
  const move = (event: KeyboardEvent): void => {
    const next = neighbour(found, focused, event.key)
    if (next === null) return
    event.preventDefault()
    setAt(next.id)
    frame.current?.querySelector<SVGElement>(`[data-node="${CSS.escape(next.id)}"]`)?.focus()
  }
  const { width, height } = found
  return (
    <div class={`picture ${found.detail}`} ref={frame}>
      <svg
        viewBox={`${-width / 2} ${-height / 2} ${width} ${height}`}
        role="group"
        aria-label={`Picture of ${counted(list.length, 'node')}. Use the arrow keys to move between nodes.`}
        onKeyDown={move}
      >
        <g aria-hidden="true">
          {found.positions.map((position) => (
            <Link
              key={position.node.id}
              position={position}
              chosen={position.node.id === chosen}
              labelled={found.detail === 'large'}
            />
          ))}
        </g>
        <Pipelines list={pipelines.value} positions={found.positions} />
        {found.positions.map((position) => (
          <Dot
            key={position.node.id}
            node={position.node}
            x={position.x}
            y={position.y}
            radius={position.radius}
            detail={found.detail}
            chosen={position.node.id === chosen}
            focusable={position.node.id === focused}
            choose={choose}
          />
        ))}
        <g aria-hidden="true">
          {found.positions.map(({ node, x, y, radius }) => (
            <Label key={node.id} node={node} x={x} y={y} radius={radius} detail={found.detail} />
          ))}
        </g>
      </svg>
    </div>
  )
}

// The next node in the direction of an arrow key; null for any other key.
function neighbour(found: Layout, focused: string | null, key: string): MeshNode | null {
  const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key]
  const from = found.positions.find((position) => position.node.id === focused)
  if (direction === undefined || from === undefined) return null
  const [dx = 0, dy = 0] = direction
  let best: Position | null = null
  let least = Infinity
  for (const position of found.positions) {
    const [x, y] = [position.x - from.x, position.y - from.y]
    const along = x * dx + y * dy
    if (along <= 1) continue
    const cost = along + 2.5 * Math.abs(x * dy - y * dx)
    if (cost < least) [least, best] = [cost, position]
  }
  return best?.node ?? null
}

const Link = memo(function Link({
  position,
  chosen,
  labelled,
}: {
  position: Position
  chosen: boolean
  labelled: boolean
}): JSX.Element | null {
  const { node, x, y } = position
  if (node.here || !node.linked || node.status === 'dead' || node.status === 'left') return null
  const transport = node.transport === null ? 'unused' : node.transport
  const labelledRtt = node.rtt !== null && (labelled || chosen)
  // Near the outer end if inner rings are in between, else near the middle.
  const at = position.ring > 1 ? 0.8 : 0.62
  return (
    <g class={`link ${transport} ${node.status}${chosen ? ' chosen' : ''}`}>
      <line x1={0} y1={0} x2={x} y2={y} />
      {labelledRtt && (
        <text x={x * at} y={y * at} dy="-0.4em">
          {milliseconds(node.rtt as number)}
        </text>
      )}
    </g>
  )
})

interface DotProps {
  node: MeshNode
  x: number
  y: number
  radius: number
  detail: Layout['detail']
  chosen: boolean
  focusable: boolean
  choose: (id: string | null) => void
}

const Dot = memo(function Dot(props: DotProps): JSX.Element {
  const { node, x, y, radius, detail, chosen } = props
  const choose = (): void => props.choose(chosen ? null : node.id)
  const press = (event: KeyboardEvent): void => {
    if (event.key !== 'Enter' && event.key !== ' ') return
    event.preventDefault()
    choose()
  }
  const { active, slots } = loadOf(node)
  return (
    <g
      class={`dot ${node.role} ${node.status}${node.here ? ' here' : ''}${chosen ? ' chosen' : ''}${active > 0 ? ' busy' : ''}`}
      style={{ transform: `translate(${x}px, ${y}px)` }}
      role="button"
      tabindex={props.focusable ? 0 : -1}
      aria-pressed={chosen}
      aria-label={description(node)}
      data-node={node.id}
      onClick={choose}
      onKeyDown={press}
    >
      <circle class="halo" r={radius + (detail === 'small' ? 5 : 8)} />
      {node.role === 'backend' ? (
        <rect class="body" x={-radius} y={-radius} width={2 * radius} height={2 * radius} rx={radius * 0.35} />
      ) : (
        <circle class="body" r={radius} />
      )}
      {slots > 0 && active > 0 && <Arc radius={radius + (detail === 'small' ? 2.5 : 4)} fraction={active / slots} />}
      {detail === 'small' && <title>{description(node)}</title>}
    </g>
  )
})

// The fraction of busy slots.
function Arc({ radius, fraction }: { radius: number; fraction: number }): JSX.Element {
  const round = 2 * Math.PI * radius
  return (
    <circle
      class="arc"
      r={radius}
      stroke-dasharray={`${Math.min(1, fraction) * round} ${round}`}
      transform="rotate(-90)"
    />
  )
}

interface LabelProps {
  node: MeshNode
  x: number
  y: number
  radius: number
  detail: Layout['detail']
}

// The visible label of a node; its button has a longer accessible name.
const Label = memo(function Label({ node, x, y, radius, detail }: LabelProps): JSX.Element | null {
  if (detail === 'small' && !node.here) return null
  const { active, slots } = loadOf(node)
  const more = node.status === 'alive' && node.models.length > 1 ? ` +${node.models.length - 1}` : ''
  const most = detail === 'large' ? 24 : 15
  const line = detail === 'large' ? 16 : 13
  // On the side that the link from the middle does not cross.
  const first = y < -1 ? -radius - 11 - line : radius + (detail === 'small' ? 13 : 19)
  return (
    <g class="label" style={{ transform: `translate(${x}px, ${y}px)` }}>
      {detail === 'large' && slots > 0 && (
        <text class="slots" dy="0.35em">
          {active}/{slots}
        </text>
      )}
      <text class="name" y={first}>
        {cut(node.name, most)}
      </text>
      {detail !== 'small' && (
        <text class="model" y={first + line}>
          {cut(labelText(node), most) + more}
        </text>
      )}
    </g>
  )
})

// The second line of a label: the status if not alive, else the first model, else the role.
function labelText(node: MeshNode): string {
  if (node.status !== 'alive') return statusText(node)
  const [share] = node.shares
  if (node.role === 'worker' && share !== undefined) return layersText(share)
  return node.models[0]?.name ?? statusText(node)
}

function cut(text: string, most: number): string {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text
}

function description(node: MeshNode): string {
  // It starts with the visible label, as voice control needs it.
  const texts = [`${node.name} ${labelText(node)}`]
  if (node.here) texts.push('this node')
  if (node.status === 'alive' && node.models.length > 0) texts.push(statusText(node))
  if (node.models.length > 1)
    texts.push(
      `also ${node.models
        .slice(1)
        .map((model) => model.name)
        .join(', ')}`,
    )
  for (const share of node.shares) texts.push(`${layersText(share)} of ${share.model}`)
  const { active, waiting } = loadOf(node)
  if (active + waiting > 0) texts.push(`${active} active, ${waiting} waiting`)
  if (node.rtt !== null) texts.push(`round trip ${milliseconds(node.rtt)}`)
  if (node.transport !== null) texts.push(`by ${transportText(node)}`)
  return texts.join('; ')
}

// The marks that this picture contains.
function Legend({ list }: { list: readonly MeshNode[] }): JSX.Element {
  const has = (test: (node: MeshNode) => boolean): boolean => list.some(test)
  const marks: [string, string, boolean][] = [
    ['dot host', 'host', has((node) => node.role === 'host' && node.status === 'alive')],
    ['dot worker', 'worker', has((node) => node.role === 'worker' && node.status === 'alive')],
    ['dot standby', 'idle', has((node) => node.role === 'standby' && node.status === 'alive')],
    ['dot client', 'client', has((node) => node.role === 'client')],
    ['dot backend', 'backend', has((node) => node.role === 'backend')],
    ['dot suspect', 'not responding', has((node) => node.status === 'suspect')],
    ['dot unverified', 'unverified', has((node) => node.status === 'unverified')],
    ['dot dead', 'dead or left', has((node) => node.status === 'dead' || node.status === 'left')],
    ['line lane', 'fast connection (lane)', has((node) => node.transport === 'lane')],
    ['line quic', 'connection (QUIC)', has((node) => node.transport === 'quic')],
    ['line pipe', 'pipeline split', pipelines.value.length > 0],
    ['line unused', 'connected, no request yet', has((node) => node.linked && !node.here && node.transport === null)],
  ]
  return (
    <ul class="legend" aria-label="Legend">
      {marks
        .filter(([, , shown]) => shown)
        .map(([mark, texts]) => (
          <li key={mark}>
            <i class={mark} />
            {texts}
          </li>
        ))}
    </ul>
  )
}

// The size of an element.
function useSize(): [{ current: HTMLDivElement | null }, Size] {
  const frame = useRef<HTMLDivElement>(null)
  const [size, setSize] = useState<Size>({ width: 1000, height: 700 })
  useEffect(() => {
    const element = frame.current
    if (element === null) return
    const observer = new ResizeObserver(([entry]) => {
      if (entry === undefined) return
      // In steps, so that a scroll bar does not move the picture.
      const width = Math.max(20, Math.round(entry.contentRect.width / 20) * 20)
      const height = Math.max(20, Math.round(entry.contentRect.height / 20) * 20)
      setSize((known) => (known.width === width && known.height === height ? known : { width, height }))
    })
    observer.observe(element)
    return () => observer.disconnect()
  }, [])
  return [frame, size]
}
