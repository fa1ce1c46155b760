// Models that several nodes carry together: who has which layers, and the way that every token takes through them.
//
// Law: pure. A node knows the splits that it hosts, and its own part in that of another; of others' nothing is known,
// and nothing is drawn.

import type { LeasePhase, NodeStatus, SplitStatus, WorkerShareStatus } from '../api'

// What a node carries of a model for its host.
export interface Part {
  model: string
  host: string // id
  first: number
  layers: number
  memory: number
  phase: LeasePhase | null // null: the host itself
  detail: string
  traffic: number | null // bytes that the host's tunnel to it has carried, both ways; null: it is not the host who tells
}

export interface Pipeline {
  model: string
  committed: boolean
  stops: string[] // ids, in the order of the layers; the host, which has the first ones, is where each token ends too
}

// The parts by node. The host's own is among them.
export function partsOf(status: NodeStatus): Map<string, Part[]> {
  const found = new Map<string, Part[]>()
  const add = (node: string, part: Part): void => void found.set(node, [...(found.get(node) ?? []), part])
  const here = status.mesh?.node ?? 'here'
  for (const split of status.splits) {
    for (const share of split.shares) add(share.node, partOf(split.model, here, share))
  }
  const lease = status.worker_lease
  if (lease !== null) add(here, { ...lease, traffic: null })
  return found
}

function partOf(model: string, host: string, share: WorkerShareStatus): Part {
  const { first, layers, memory, phase, detail } = share
  return { model, host, first, layers, memory, phase, detail, traffic: share.sent + share.received }
}

export function pipelinesOf(status: NodeStatus): Pipeline[] {
  const found = status.splits
    .filter((split) => split.shares.length > 1)
    .map((split) => ({
      model: split.model,
      committed: split.committed,
      stops: inOrder(split).map((share) => share.node),
    }))
  const { worker_lease: lease, mesh } = status
  if (lease !== null && mesh !== null) {
    found.push({ model: lease.model, committed: lease.phase === 'committed', stops: [lease.host, mesh.node] })
  }
  return found
}

export function inOrder(split: SplitStatus): WorkerShareStatus[] {
  return split.shares.toSorted((one, other) => one.first - other.first)
}

// "layers 0 to 11"
export function layersOf(part: { first: number; layers: number }): string {
  if (part.layers === 0) return 'no layers'
  const last = part.first + part.layers - 1
  return part.layers === 1 ? `layer ${part.first}` : `layers ${part.first} to ${last}`
}
