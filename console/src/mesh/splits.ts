// Pipeline splits: the layers of each node, and the path of a token through the nodes. Pure. A node knows the splits that
// it hosts, and its own share of the split of another host; other splits are unknown.

import type { LeasePhase, NodeStatus, SplitStatus, WorkerShareStatus } from '../api'

// The layers of a split model that one node computes.
export interface LayerShare {
  model: string
  host: string // id
  first: number
  layers: number
  memory: number // planned
  used: number | null // by the engine processes of the node; null: unknown
  phase: LeasePhase | null // null: the host itself
  detail: string
  traffic: number | null // bytes in both directions between host and worker; null: unknown
}

export interface Pipeline {
  model: string
  committed: boolean
  nodeIds: string[] // in the order of the layers, the host first; each token returns to the host
}

// Shares by node id, including the host's own.
export function sharesByNode(status: NodeStatus): Map<string, LayerShare[]> {
  const found = new Map<string, LayerShare[]>()
  const add = (node: string, share: LayerShare): void => void found.set(node, [...(found.get(node) ?? []), share])
  const here = status.mesh?.node ?? 'here'
  for (const split of status.splits) {
    for (const share of split.shares) add(share.node, shareOf(split.model, here, share))
  }
  const lease = status.worker_lease
  if (lease !== null) add(here, { ...lease, used: lease.memory_used, traffic: null })
  return found
}

function shareOf(model: string, host: string, share: WorkerShareStatus): LayerShare {
  const { first, layers, memory, memory_used: used, phase, detail } = share
  return { model, host, first, layers, memory, used, phase, detail, traffic: share.sent + share.received }
}

export function pipelinesOf(status: NodeStatus): Pipeline[] {
  const found = status.splits
    .filter((split) => split.shares.length > 1)
    .map((split) => ({
      model: split.model,
      committed: split.committed,
      nodeIds: byLayer(split).map((share) => share.node),
    }))
  const { worker_lease: lease, mesh } = status
  if (lease !== null && mesh !== null) {
    found.push({ model: lease.model, committed: lease.phase === 'committed', nodeIds: [lease.host, mesh.node] })
  }
  return found
}

export function byLayer(split: SplitStatus): WorkerShareStatus[] {
  return split.shares.toSorted((one, other) => one.first - other.first)
}

// "layers 0 to 11"
export function layersText(share: { first: number; layers: number }): string {
  if (share.layers === 0) return 'no layers'
  const last = share.first + share.layers - 1
  return share.layers === 1 ? `layer ${share.first}` : `layers ${share.first} to ${last}`
}
