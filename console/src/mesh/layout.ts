// Positions of the nodes in the picture: this node in the middle, the others on rings. Pure.
//
// Invariants: a position depends on ids and roles, not on status; nodes never overlap.

import type { MeshNode } from './nodes'

export type Detail = 'large' | 'medium' | 'small'

export interface Position {
  node: MeshNode
  x: number
  y: number
  radius: number
  ring: number // counted from the middle, which is 0
}

export interface Layout {
  detail: Detail
  positions: Position[]
  width: number
  height: number
}

interface Scale {
  detail: Detail
  first: number // radius of the innermost ring
  step: number // between two rings
  gap: number // along a ring
  radius: number // of a node
  margin: number // around the picture, for labels
}

const SCALES: readonly Scale[] = [
  { detail: 'large', first: 168, step: 148, gap: 150, radius: 24, margin: 74 },
  { detail: 'medium', first: 150, step: 88, gap: 104, radius: 15, margin: 46 },
  { detail: 'small', first: 92, step: 27, gap: 26, radius: 7.5, margin: 22 },
]

const STEPS = 16

// Below this zoom, labels cannot be read: a smaller level of detail is used.
const LEAST_ZOOM = 0.68

export interface Size {
  width: number // in pixels
  height: number
}

// The layout with the highest level of detail that fits into `size`; rings are stretched to its aspect ratio.
export function layout(nodes: readonly MeshNode[], size: Size): Layout {
  for (const scale of SCALES) {
    const found = laidOut(nodes, scale, size.width / size.height)
    const zoom = Math.min(size.width / found.width, size.height / found.height)
    if (zoom >= LEAST_ZOOM || scale.detail === 'small') return found
  }
  throw new Error('no scale is the last one')
}

function laidOut(nodes: readonly MeshNode[], scale: Scale, aspect: number): Layout {
  const [here, ...others] = nodes
  const stretch = Math.min(1.7, Math.max(0.7, aspect))
  const [sx, sy] = stretch >= 1 ? [stretch, 1] : [1, 1 / stretch]
  const positions: Position[] = []
  if (here !== undefined) positions.push({ node: here, x: 0, y: 0, radius: scale.radius * 1.35, ring: 0 })
  let reach = 0
  let inner: number[] = []
  rings(others.toSorted(byRank), scale).forEach((ring, number) => {
    const radius = scale.first + number * scale.step
    reach = radius
    const turns = number === 0 ? firstTurns(ring.length) : turnsBetween(inner, ring.length)
    inner = turns
    ring.forEach((node, index) => {
      const angle = (turns[index] as number) * 2 * Math.PI
      const factor = rank(node) < 2 ? 1 : 0.8
      positions.push({
        node,
        x: Math.round(Math.cos(angle) * radius * sx * 10) / 10,
        y: Math.round(Math.sin(angle) * radius * sy * 10) / 10,
        radius: scale.radius * factor,
        ring: number + 1,
      })
    })
  })
  const half = Math.max(reach, scale.first * 0.8) + scale.margin + scale.radius
  return { detail: scale.detail, positions, width: 2 * half * sx, height: 2 * half * sy }
}

// Angles on the innermost ring as fractions of a turn: from the top; two nodes are side by side.
function firstTurns(count: number): number[] {
  return Array.from({ length: count }, (_, index) => index / count - (count === 2 ? 0 : 0.25))
}

// Angles on the next ring, turned away from the angles of the `inner` ring, so that links do not cover each other.
function turnsBetween(inner: readonly number[], count: number): number[] {
  let best: number[] = []
  let most = -1
  for (let step = 0; step < STEPS; step += 1) {
    const turns = Array.from({ length: count }, (_, index) => (index + step / STEPS) / count - 0.25)
    const least = Math.min(...turns.map((turn) => Math.min(...inner.map((other) => distance(turn, other)))))
    if (least > most + 1e-9) [most, best] = [least, turns]
  }
  return best
}

function distance(one: number, other: number): number {
  const turn = Math.abs(one - other) % 1
  return Math.min(turn, 1 - turn)
}

// Backends and hosts are inside, then the others; each group in the order of ids.
function byRank(one: MeshNode, other: MeshNode): number {
  const by = rank(one) - rank(other)
  return by !== 0 ? by : one.id < other.id ? -1 : one.id > other.id ? 1 : 0
}

function rank(node: MeshNode): number {
  return node.role === 'backend' ? 0 : node.role === 'host' || node.role === 'worker' ? 1 : 2
}

function rings(nodes: readonly MeshNode[], scale: Scale): MeshNode[][] {
  const found: MeshNode[][] = []
  let rest = [...nodes]
  while (rest.length > 0) {
    const radius = scale.first + found.length * scale.step
    const capacity = Math.max(4, Math.floor((2 * Math.PI * radius) / scale.gap))
    // The last two rings share the rest evenly.
    const next = capacity + Math.floor((2 * Math.PI * (radius + scale.step)) / scale.gap)
    const take = rest.length > capacity && rest.length < next ? Math.ceil((rest.length * capacity) / next) : capacity
    found.push(rest.slice(0, take))
    rest = rest.slice(take)
  }
  return found
}
