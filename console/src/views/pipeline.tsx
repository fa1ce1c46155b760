// The path of a token through the nodes of a pipeline split: from the host, in the order of the layers, and back.

import type { JSX } from 'preact'
import type { Position } from '../mesh/layout'
import type { Pipeline } from '../mesh/splits'

// Bend of a curve as a fraction of its length, so that it differs from the straight links below it.
const BEND = 0.16
const GAP = 7

export function Pipelines({
  list,
  positions,
}: {
  list: readonly Pipeline[]
  positions: readonly Position[]
}): JSX.Element | null {
  if (list.length === 0) return null
  const known = new Map(positions.map((position) => [position.node.id, position]))
  return (
    <g class="pipelines" aria-hidden="true">
      <defs>
        <marker
          id="arrow"
          viewBox="0 0 10 10"
          refX="8"
          refY="5"
          markerWidth="5"
          markerHeight="5"
          orient="auto-start-reverse"
        >
          <path d="M0 0 10 5 0 10z" />
        </marker>
      </defs>
      {list.map(({ model, committed, nodeIds }) => (
        <g key={model} class={committed ? 'pipe' : 'pipe forming'}>
          {hops(nodeIds, known).map(([from, to]) => (
            <path key={`${from.node.id} ${to.node.id}`} d={curve(from, to)} marker-end="url(#arrow)" />
          ))}
        </g>
      ))}
    </g>
  )
}

function hops(nodeIds: readonly string[], known: ReadonlyMap<string, Position>): [Position, Position][] {
  const positions = nodeIds.map((id) => known.get(id)).filter((position) => position !== undefined)
  return positions.flatMap((from, place): [Position, Position][] => {
    const to = positions[(place + 1) % positions.length]
    return to === undefined || to === from ? [] : [[from, to]]
  })
}

function curve(from: Position, to: Position): string {
  const [dx, dy] = [to.x - from.x, to.y - from.y]
  const [cx, cy] = [(from.x + to.x) / 2 - dy * BEND, (from.y + to.y) / 2 + dx * BEND]
  const [ax, ay] = edge(from, cx, cy)
  const [bx, by] = edge(to, cx, cy)
  return `M${ax} ${ay}Q${Math.round(cx)} ${Math.round(cy)} ${bx} ${by}`
}

// The end of a curve from (`x`, `y`) at the edge of the node.
function edge(position: Position, x: number, y: number): [number, number] {
  const length = Math.hypot(x - position.x, y - position.y) || 1
  const part = (position.radius + GAP) / length
  return [
    Math.round((position.x + (x - position.x) * part) * 10) / 10,
    Math.round((position.y + (y - position.y) * part) * 10) / 10,
  ]
}
