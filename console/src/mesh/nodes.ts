// The nodes of the mesh as one list: this one, its peers and the backends behind it, from what the daemon says.
//
// Law: pure. Nothing is made up: what a node did not tell is null, and is shown as unknown or not at all.

import { partsOf, type Part } from './splits'
import {
  PEER_STATUSES,
  type LoadStatus,
  type Modality,
  type ModelPhase,
  type ModelStatus,
  type NodeStatus,
  type PeerInfo,
  type PeerStatus,
  type Purpose,
  type ServedStatus,
  type TransportKind,
} from '../api'

export type Role = 'host' | 'worker' | 'standby' | 'client' | 'backend'

export interface Carried {
  name: string
  phase: ModelPhase
  purpose: Purpose | null
  sees: boolean | null // whether it takes images
  context: number
  slots: number
  active: number
  waiting: number
  memory: number // what the engine takes, or the file's size where only that is known; 0: unknown
  speed: number | null
}

export interface MeshNode {
  id: string
  name: string
  here: boolean
  role: Role
  status: PeerStatus
  reason: string
  version: string
  models: Carried[]
  wants: string[]
  onDisk: string[]
  aliases: Record<string, string> // names on its disk of files that have another name there, and that one
  parts: Part[] // what it carries of models that are split
  memory: number // offered, in bytes
  linked: boolean
  rtt: number | null
  transport: TransportKind | 'http' | null // null: no request yet
  addresses: string[]
  since: number | null // when its state began, in seconds since the epoch; to the second, and steady
}

// All nodes, this one first. `wall` is the time in seconds since the epoch; `before` what was found last time.
export function nodesOf(status: NodeStatus, wall: number, before: readonly MeshNode[] = []): MeshNode[] {
  const known = new Map(before.map((node) => [node.id, node]))
  const peers = (status.mesh?.peers ?? []).map((peer) => peerOf(peer, status.load, wall, known.get(peer.id)))
  const parts = partsOf(status)
  const found = [hereOf(status), ...peers, ...status.backends.map((backend) => backendOf(backend, status.load))]
  return parts.size === 0 ? found : found.map((node) => withParts(node, parts.get(node.id) ?? []))
}

function withParts(node: MeshNode, parts: Part[]): MeshNode {
  const carries = parts.some((part) => part.phase !== 'ended')
  return { ...node, parts, role: carries && node.role === 'standby' ? 'worker' : node.role }
}

function hereOf(status: NodeStatus): MeshNode {
  const models = status.models.map((model) => carriedHere(model, status.load))
  const { mesh } = status
  return {
    id: mesh?.node ?? 'here',
    name: status.name,
    here: true,
    role: mesh?.role === 'client' ? 'client' : models.some((model) => model.phase === 'serving') ? 'host' : 'standby',
    status: 'alive',
    reason: mesh === null ? status.mesh_reason : mesh.reason,
    version: status.version,
    models,
    wants: mesh?.wants ?? [],
    onDisk: mesh?.on_disk ?? [],
    aliases: mesh?.aliases ?? {},
    parts: [],
    memory: mesh?.memory ?? 0,
    linked: true,
    rtt: null,
    transport: null,
    addresses: mesh?.addresses ?? [],
    since: null,
  }
}

function carriedHere(model: ModelStatus, load: readonly LoadStatus[]): Carried {
  const { engine } = model
  const busy =
    engine === null ? undefined : load.find((entry) => entry.kind === 'engine' && entry.target === model.name)
  return {
    name: model.name,
    phase: model.phase,
    purpose: model.purpose,
    sees: seesBy(model.input_modalities),
    context: engine?.context_length ?? 0,
    slots: engine?.slots ?? 0,
    active: busy?.active ?? 0,
    waiting: busy?.waiting ?? 0,
    memory: engine?.memory ?? model.file?.size ?? 0,
    speed: busy?.tokens_per_second ?? null,
  }
}

function peerOf(peer: PeerInfo, load: readonly LoadStatus[], wall: number, before: MeshNode | undefined): MeshNode {
  const status = PEER_STATUSES.find((known) => known === peer.status) ?? 'unverified' // a newer daemon may know more
  const began = Math.round(wall - peer.since_seconds)
  // The same moment, told again and again, comes out a little different each time.
  const steady = before?.status === status && before.since !== null && Math.abs(before.since - began) <= 2
  return {
    id: peer.id,
    name: peer.name || 'a node',
    here: false,
    role: peer.serves.length > 0 ? 'host' : 'standby',
    status,
    reason: peer.reason,
    version: peer.software.replace(/^mesh-llm /, ''),
    models: peer.serves.map((served) =>
      carriedThere(
        served,
        load.find((one) => isOf(one, peer.id, served.name)),
      ),
    ),
    wants: peer.wants,
    onDisk: peer.on_disk,
    aliases: peer.aliases,
    parts: [],
    memory: peer.memory,
    linked: peer.linked,
    rtt: peer.rtt,
    transport: peer.transport,
    addresses: peer.addresses,
    since: steady ? before.since : began,
  }
}

function isOf(entry: LoadStatus, peer: string, model: string): boolean {
  return entry.kind === 'peer' && entry.target === peer && entry.model === model
}

function carriedThere(served: ServedStatus, asked: LoadStatus | undefined): Carried {
  return {
    name: served.name,
    phase: 'serving',
    purpose: served.purpose,
    sees: seesBy(served.input_modalities),
    context: served.context_length,
    slots: served.slots,
    active: served.active,
    waiting: served.waiting,
    memory: served.size,
    speed: asked?.tokens_per_second ?? null,
  }
}

function seesBy(modalities: readonly Modality[] | null): boolean | null {
  return modalities?.includes('image') ?? null
}

function backendOf(backend: NodeStatus['backends'][number], load: readonly LoadStatus[]): MeshNode {
  const busy = load.find((entry) => entry.kind === 'backend' && entry.target === backend.url)
  const models = backend.models.map((name): Carried => {
    return {
      name,
      phase: 'serving',
      purpose: null,
      sees: null,
      context: 0,
      slots: 0,
      active: 0,
      waiting: 0,
      memory: 0,
      speed: null,
    }
  })
  if (models[0] !== undefined && busy !== undefined) {
    models[0] = { ...models[0], active: busy.active, waiting: busy.waiting, speed: busy.tokens_per_second }
  }
  return {
    id: backend.url,
    name: backend.url.replace(/^https?:\/\//, ''),
    here: false,
    role: 'backend',
    status: backend.healthy ? 'alive' : 'suspect',
    reason: backend.reason,
    version: '',
    models,
    wants: [],
    onDisk: [],
    aliases: {},
    parts: [],
    memory: 0,
    linked: true,
    rtt: null,
    transport: 'http',
    addresses: backend.url.includes('://') ? [backend.url] : [], // other devices are told a number instead
    since: null,
  }
}

export function busyOf(node: MeshNode): { active: number; waiting: number; slots: number } {
  let [active, waiting, slots] = [0, 0, 0]
  for (const model of node.models) {
    active += model.active
    waiting += model.waiting
    slots += model.slots
  }
  return { active, waiting, slots }
}

// The node that a target stands for: "engine", "backend URL" or "peer ID", where the id may be shortened.
export function targetText(target: string, nodes: readonly MeshNode[]): string {
  const [kind = '', id = ''] = target.split(' ', 2)
  if (kind === 'engine') return nodes.find((node) => node.here)?.name ?? 'this node'
  if (kind === 'peer') return nodes.find((node) => node.id.startsWith(id))?.name ?? id.slice(0, 10)
  if (kind === 'backend') return id === '' ? 'a backend' : id.replace(/^https?:\/\//, '') // redacted: no URL
  return target
}

const ROLE_WORDS: Record<Role, string> = {
  host: 'serves',
  worker: 'carries a part',
  standby: 'standby',
  client: 'client',
  backend: 'backend',
}
const STATUS_TEXTS: Record<PeerStatus, string> = {
  alive: 'alive',
  suspect: 'does not answer',
  unverified: 'unverified',
  dead: 'gone',
  left: 'has left',
}

const TRANSPORT_TEXTS = { lane: 'lane (TLS over TCP)', quic: 'QUIC', http: 'HTTP' } as const

// What a node is, in a word or three: its state, if that is what matters, else its role.
export function standing(node: MeshNode): string {
  return node.status === 'alive' ? ROLE_WORDS[node.role] : STATUS_TEXTS[node.status]
}

// The kind of a link, for people. Empty while no request has taken one.
export function linkWords(node: MeshNode): string {
  return node.transport === null ? '' : TRANSPORT_TEXTS[node.transport]
}
