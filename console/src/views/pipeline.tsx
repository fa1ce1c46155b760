// The way of each token through the nodes that carry a model together: from the host, in the order of the layers, and
// back to it.

import type { JSX } from 'preact'
import type { Spot } from '../mesh/layout'
import type { Pipeline } from '../mesh/splits'

// How far a curve bends aside, as a part of its length: enough to be told from the straight links below it.
const BEND = 0.16
const GAP = 7

export function Pipelines({ list, spots }: { list: readonly Pipeline[]; spots: readonly Spot[] }): JSX.Element | null {
  if (list.length === 0) return null
  const known = new Map(spots.map((spot) => [spot.node.id, spot]))
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
      {list.map(({ model, committed, stops }) => (
        <g key={model} class={committed ? 'pipe' : 'pipe forming'}>
          {hops(stops, known).map(([from, to]) => (
            <path key={`${from.node.id} ${to.node.id}`} d={curve(from, to)} marker-end="url(#arrow)" />
          ))}
        </g>
      ))}
    </g>
  )
}

function hops(stops: readonly string[], known: ReadonlyMap<string, Spot>): [Spot, Spot][] {
  const spots = stops.map((id) => known.get(id)).filter((spot) => spot !== undefined)
  return spots.flatMap((from, place): [Spot, Spot][] => {
    const to = spots[(place + 1) % spots.length]
    return to === undefined || to === from ? [] : [[from, to]]
  })
}

function curve(from: Spot, to: Spot): string {
  const [dx, dy] = [to.x - from.x, to.y - from.y]
  const [cx, cy] = [(from.x + to.x) / 2 - dy * BEND, (from.y + to.y) / 2 + dx * BEND]
  const [ax, ay] = edge(from, cx, cy)
  const [bx, by] = edge(to, cx, cy)
  return `M${ax} ${ay}Q${Math.round(cx)} ${Math.round(cy)} ${bx} ${by}`
}

// Where a curve that comes from (`x`, `y`) ends before it runs into the node.
function edge(spot: Spot, x: number, y: number): [number, number] {
  const length = Math.hypot(x - spot.x, y - spot.y) || 1
  const part = (spot.radius + GAP) / length
  return [Math.round((spot.x + (x - spot.x) * part) * 10) / 10, Math.round((spot.y + (y - spot.y) * part) * 10) / 10]
}
