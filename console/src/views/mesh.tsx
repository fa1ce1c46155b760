// The mesh as a picture: nodes as they are, and this node's links to them. What is chosen is told in full beside it.

import type { JSX } from 'preact'
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import { layout, type Layout, type Room, type Spot } from '../mesh/layout'
import { busyOf, linkWords, standing, type MeshNode } from '../mesh/nodes'
import { layersOf } from '../mesh/splits'
import { memo } from '../parts/memo'
import { idle, nodes, pipelines, status } from '../state'
import { counted, milliseconds } from '../words'
import { Details } from './details'
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
      {node !== null && <Details node={node} close={() => setChosen(null)} />}
    </div>
  )
}

function Head({ list }: { list: readonly MeshNode[] }): JSX.Element {
  const mesh = status.value?.mesh ?? null
  const living = list.filter((node) => node.status === 'alive' && node.role !== 'backend')
  const hosts = list.filter(
    (node) => node.status === 'alive' && (node.role === 'host' || node.role === 'backend'),
  ).length
  const suspect = list.filter((node) => node.status === 'suspect').length
  const all = list.filter((node) => node.role !== 'backend' && node.status !== 'dead' && node.status !== 'left').length
  const words = [
    all === living.length ? counted(all, 'node') : `${living.length} of ${all} nodes alive`,
    hosts === 0 ? 'nothing served' : `${hosts} serving`,
  ]
  if (suspect > 0) words.push(`${suspect} silent`)
  if (mesh !== null && mesh.clients > 0) words.push(counted(mesh.clients, 'client'))
  return (
    <div class="head">
      <h1 id="mesh-title">{mesh === null ? 'This node' : 'Mesh'}</h1>
      <p aria-live="polite">{words.join(' · ')}</p>
      <Joining />
    </div>
  )
}

// How the join goes, while it goes or where it failed: what a person needs to know first of all.
function Joining(): JSX.Element | null {
  const known = status.value
  if (known === null) return null
  if (known.mesh === null)
    return known.mesh_reason === '' ? null : <p class="notice">In no mesh: {known.mesh_reason}</p>
  const { phase, reason, join_attempts: attempts } = known.mesh
  if (phase === 'alone' || phase === 'joined') return null
  return (
    <div class={`notice${phase === 'failed' ? ' worrying' : ''}`} role="status">
      <p>
        {phase === 'failed' ? 'The mesh could not be reached' : 'Looking for the mesh'}
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
  const [frame, room] = useRoom()
  const found = useMemo(() => layout(list, room), [list, room])
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
        aria-label={`Picture of ${counted(list.length, 'node')}. Arrow keys go from node to node.`}
        onKeyDown={move}
      >
        <g aria-hidden="true">
          {found.spots.map((spot) => (
            <Link key={spot.node.id} spot={spot} chosen={spot.node.id === chosen} labelled={found.detail === 'large'} />
          ))}
        </g>
        <Pipelines list={pipelines.value} spots={found.spots} />
        {found.spots.map((spot) => (
          <Dot
            key={spot.node.id}
            node={spot.node}
            x={spot.x}
            y={spot.y}
            radius={spot.radius}
            detail={found.detail}
            chosen={spot.node.id === chosen}
            focusable={spot.node.id === focused}
            choose={choose}
          />
        ))}
        <g aria-hidden="true">
          {found.spots.map(({ node, x, y, radius }) => (
            <Words key={node.id} node={node} x={x} y={y} radius={radius} detail={found.detail} />
          ))}
        </g>
      </svg>
    </div>
  )
}

// The next node in the direction of an arrow key; null for any other key.
function neighbour(found: Layout, focused: string | null, key: string): MeshNode | null {
  const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key]
  const from = found.spots.find((spot) => spot.node.id === focused)
  if (direction === undefined || from === undefined) return null
  const [dx = 0, dy = 0] = direction
  let best: Spot | null = null
  let least = Infinity
  for (const spot of found.spots) {
    const [x, y] = [spot.x - from.x, spot.y - from.y]
    const along = x * dx + y * dy
    if (along <= 1) continue
    const cost = along + 2.5 * Math.abs(x * dy - y * dx)
    if (cost < least) [least, best] = [cost, spot]
  }
  return best?.node ?? null
}

const Link = memo(function Link({
  spot,
  chosen,
  labelled,
}: {
  spot: Spot
  chosen: boolean
  labelled: boolean
}): JSX.Element | null {
  const { node, x, y } = spot
  if (node.here || !node.linked || node.status === 'dead' || node.status === 'left') return null
  const way = node.transport === null ? 'unused' : node.transport
  const told = node.rtt !== null && (labelled || chosen)
  // On a long link behind the nodes of inner rings, else about in the middle between the two ends.
  const at = spot.ring > 1 ? 0.8 : 0.62
  return (
    <g class={`link ${way} ${node.status}${chosen ? ' chosen' : ''}`}>
      <line x1={0} y1={0} x2={x} y2={y} />
      {told && (
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
  const { active, slots } = busyOf(node)
  return (
    <g
      class={`dot ${node.role} ${node.status}${node.here ? ' here' : ''}${chosen ? ' chosen' : ''}${active > 0 ? ' busy' : ''}`}
      style={{ transform: `translate(${x}px, ${y}px)` }}
      role="button"
      tabindex={props.focusable ? 0 : -1}
      aria-pressed={chosen}
      aria-label={sentence(node)}
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
      {detail === 'small' && <title>{sentence(node)}</title>}
    </g>
  )
})

// How much of what a node can do at a time it is doing.
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

interface WordsProps {
  node: MeshNode
  x: number
  y: number
  radius: number
  detail: Layout['detail']
}

// What is to be read of a node. Its button says the same, and more, to who does not read it.
const Words = memo(function Words({ node, x, y, radius, detail }: WordsProps): JSX.Element | null {
  if (detail === 'small' && !node.here) return null
  const { active, slots } = busyOf(node)
  const more = node.status === 'alive' && node.models.length > 1 ? ` +${node.models.length - 1}` : ''
  const most = detail === 'large' ? 24 : 15
  const line = detail === 'large' ? 16 : 13
  // Where the link, which comes from the middle, does not run through it.
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
        <text class="carries" y={first + line}>
          {cut(carries(node), most) + more}
        </text>
      )}
    </g>
  )
})

// The most telling thing of a node: its state if that matters, else its first model, else its role.
function carries(node: MeshNode): string {
  if (node.status !== 'alive') return standing(node)
  const [part] = node.parts
  if (node.role === 'worker' && part !== undefined) return layersOf(part)
  return node.models[0]?.name ?? standing(node)
}

function cut(text: string, most: number): string {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text
}

function sentence(node: MeshNode): string {
  // It begins with what is to be read in the picture, for those who say aloud what to click on.
  const words = [`${node.name} ${carries(node)}`]
  if (node.here) words.push('this node')
  if (node.status === 'alive' && node.models.length > 0) words.push(standing(node))
  if (node.models.length > 1)
    words.push(
      `also ${node.models
        .slice(1)
        .map((model) => model.name)
        .join(', ')}`,
    )
  for (const part of node.parts) words.push(`carries ${layersOf(part)} of ${part.model}`)
  const { active, waiting } = busyOf(node)
  if (active + waiting > 0) words.push(`${active} at work, ${waiting} waiting`)
  if (node.rtt !== null) words.push(`${milliseconds(node.rtt)} away`)
  if (node.transport !== null) words.push(`by ${linkWords(node)}`)
  return words.join('; ')
}

// What is to be seen in this picture, and no more.
function Legend({ list }: { list: readonly MeshNode[] }): JSX.Element {
  const has = (test: (node: MeshNode) => boolean): boolean => list.some(test)
  const marks: [string, string, boolean][] = [
    ['dot host', 'serves', has((node) => node.role === 'host' && node.status === 'alive')],
    ['dot worker', 'carries a part', has((node) => node.role === 'worker' && node.status === 'alive')],
    ['dot standby', 'standby', has((node) => node.role === 'standby' && node.status === 'alive')],
    ['dot client', 'client', has((node) => node.role === 'client')],
    ['dot backend', 'backend', has((node) => node.role === 'backend')],
    ['dot suspect', 'does not answer', has((node) => node.status === 'suspect')],
    ['dot unverified', 'unverified', has((node) => node.status === 'unverified')],
    ['dot dead', 'gone', has((node) => node.status === 'dead' || node.status === 'left')],
    ['line lane', 'lane', has((node) => node.transport === 'lane')],
    ['line quic', 'QUIC', has((node) => node.transport === 'quic')],
    ['line pipe', 'a token’s way through a split', pipelines.value.length > 0],
    ['line unused', 'linked, no request yet', has((node) => node.linked && !node.here && node.transport === null)],
  ]
  return (
    <ul class="legend" aria-label="What the marks mean">
      {marks
        .filter(([, , shown]) => shown)
        .map(([mark, words]) => (
          <li key={mark}>
            <i class={mark} />
            {words}
          </li>
        ))}
    </ul>
  )
}

// The room an element has.
function useRoom(): [{ current: HTMLDivElement | null }, Room] {
  const frame = useRef<HTMLDivElement>(null)
  const [room, setRoom] = useState<Room>({ width: 1000, height: 700 })
  useEffect(() => {
    const element = frame.current
    if (element === null) return
    const observer = new ResizeObserver(([entry]) => {
      if (entry === undefined) return
      // In steps, so that a scroll bar that comes and goes does not move the picture.
      const width = Math.max(20, Math.round(entry.contentRect.width / 20) * 20)
      const height = Math.max(20, Math.round(entry.contentRect.height / 20) * 20)
      setRoom((known) => (known.width === width && known.height === height ? known : { width, height }))
    })
    observer.observe(element)
    return () => observer.disconnect()
  }, [])
  return [frame, room]
}
