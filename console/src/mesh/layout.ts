// Where nodes stand in the picture: this one in the middle, the others on rings around it.
//
// Law: pure and steady. A node's place follows from its id and its role, not from its state, so that a node that falls
// silent changes its colour and not its place; and no two nodes overlap, however many there are.

import type { MeshNode } from './nodes'

export type Detail = 'large' | 'medium' | 'small'

export interface Spot {
  node: MeshNode
  x: number
  y: number
  radius: number
  ring: number // counted from the middle, which is 0
}

export interface Layout {
  detail: Detail
  spots: Spot[]
  width: number
  height: number
}

interface Scale {
  detail: Detail
  first: number // radius of the innermost ring
  step: number // between two rings
  gap: number // along a ring
  radius: number // of a node
  margin: number // around everything, for labels
}

const SCALES: readonly Scale[] = [
  { detail: 'large', first: 168, step: 148, gap: 150, radius: 24, margin: 74 },
  { detail: 'medium', first: 150, step: 88, gap: 104, radius: 15, margin: 46 },
  { detail: 'small', first: 92, step: 27, gap: 26, radius: 7.5, margin: 22 },
]

const STEPS = 16

// A picture is drawn this much smaller at most, else its labels cannot be read: then it is drawn with less in it.
const LEAST_ZOOM = 0.68

export interface Room {
  width: number // in pixels
  height: number
}

// With as much in it as `room` has place for; the rings are stretched to fill it, within reason.
export function layout(nodes: readonly MeshNode[], room: Room): Layout {
  for (const scale of SCALES) {
    const found = laidOut(nodes, scale, room.width / room.height)
    const zoom = Math.min(room.width / found.width, room.height / found.height)
    if (zoom >= LEAST_ZOOM || scale.detail === 'small') return found
  }
  throw new Error('no scale is the last one')
}

function laidOut(nodes: readonly MeshNode[], scale: Scale, aspect: number): Layout {
  const [here, ...others] = nodes
  const stretch = Math.min(1.7, Math.max(0.7, aspect))
  const [sx, sy] = stretch >= 1 ? [stretch, 1] : [1, 1 / stretch]
  const spots: Spot[] = []
  if (here !== undefined) spots.push({ node: here, x: 0, y: 0, radius: scale.radius * 1.35, ring: 0 })
  let reach = 0
  let inner: number[] = []
  rings(others.toSorted(byPlace), scale).forEach((ring, number) => {
    const radius = scale.first + number * scale.step
    reach = radius
    const turns = number === 0 ? firstTurns(ring.length) : turnsBetween(inner, ring.length)
    inner = turns
    ring.forEach((node, place) => {
      const angle = (turns[place] as number) * 2 * Math.PI
      const size = rank(node) < 2 ? 1 : 0.8
      spots.push({
        node,
        x: Math.round(Math.cos(angle) * radius * sx * 10) / 10,
        y: Math.round(Math.sin(angle) * radius * sy * 10) / 10,
        radius: scale.radius * size,
        ring: number + 1,
      })
    })
  })
  const half = Math.max(reach, scale.first * 0.8) + scale.margin + scale.radius
  return { detail: scale.detail, spots, width: 2 * half * sx, height: 2 * half * sy }
}

// Where nodes stand on the innermost ring, as parts of a whole turn: from the top, or side by side where there are two.
function firstTurns(count: number): number[] {
  return Array.from({ length: count }, (_, place) => place / count - (count === 2 ? 0 : 0.25))
}

// The same on the next ring: turned so that no node stands right behind one of the `inner` ring, whose links would
// cover its own.
function turnsBetween(inner: readonly number[], count: number): number[] {
  let best: number[] = []
  let most = -1
  for (let step = 0; step < STEPS; step += 1) {
    const turns = Array.from({ length: count }, (_, place) => (place + step / STEPS) / count - 0.25)
    const least = Math.min(...turns.map((turn) => Math.min(...inner.map((other) => apart(turn, other)))))
    if (least > most + 1e-9) [most, best] = [least, turns]
  }
  return best
}

function apart(one: number, other: number): number {
  const turn = Math.abs(one - other) % 1
  return Math.min(turn, 1 - turn)
}

// Who serves stands inside, then who could, and each kind in the order of ids, which never change.
function byPlace(one: MeshNode, other: MeshNode): number {
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
    const room = Math.max(4, Math.floor((2 * Math.PI * radius) / scale.gap))
    // What is left is spread evenly over the last two rings, so that the outermost is not a handful.
    const next = room + Math.floor((2 * Math.PI * (radius + scale.step)) / scale.gap)
    const take = rest.length > room && rest.length < next ? Math.ceil((rest.length * room) / next) : room
    found.push(rest.slice(0, take))
    rest = rest.slice(take)
  }
  return found
}
