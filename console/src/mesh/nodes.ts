// The nodes of the mesh as one list: this one, its peers and the backends behind it, from what the daemon says.
//
// Law: pure. Nothing is made up: what a node did not tell is null, and is shown as unknown or not at all.

import { partsOf, type Part } from './splits'
import type { LoadStatus, ModelStatus, NodeStatus, PeerStatus, ServedStatus } from '../api'

export type Role = 'host' | 'worker' | 'standby' | 'client' | 'backend'
export type Life = 'alive' | 'suspect' | 'unverified' | 'dead' | 'left'

export interface Carried {
  name: string
  phase: string
  purpose: string | null
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
  life: Life
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
  via: string
  addresses: string[]
  since: number | null // when its state began, in seconds since the epoch; to the second, and steady
}

const LIVES: readonly Life[] = ['alive', 'suspect', 'unverified', 'dead', 'left']

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
    life: 'alive',
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
    via: '',
    addresses: mesh?.addresses ?? [],
    since: null,
  }
}

function carriedHere(model: ModelStatus, load: readonly LoadStatus[]): Carried {
  const { engine } = model
  const busy = engine === null ? undefined : load.find((entry) => entry.target === engine.socket)
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

function peerOf(peer: PeerStatus, load: readonly LoadStatus[], wall: number, before: MeshNode | undefined): MeshNode {
  const life = LIVES.find((word) => word === peer.status) ?? 'unverified'
  const began = Math.round(wall - peer.since_seconds)
  // The same moment, told again and again, comes out a little different each time.
  const steady = before?.life === life && before.since !== null && Math.abs(before.since - began) <= 2
  return {
    id: peer.id,
    name: peer.name || 'a node',
    here: false,
    role: peer.serves.length > 0 ? 'host' : 'standby',
    life,
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
    via: peer.via,
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

function seesBy(modalities: readonly string[] | null): boolean | null {
  return modalities?.includes('image') ?? null
}

function backendOf(backend: NodeStatus['backends'][number], load: readonly LoadStatus[]): MeshNode {
  const busy = load.find((entry) => entry.target === backend.url)
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
    life: backend.healthy ? 'alive' : 'suspect',
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
    via: 'http',
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

const ROLE_WORDS: Record<Role, string> = {
  host: 'serves',
  worker: 'carries a part',
  standby: 'standby',
  client: 'client',
  backend: 'backend',
}
const LIFE_WORDS: Record<Life, string> = {
  alive: 'alive',
  suspect: 'does not answer',
  unverified: 'unverified',
  dead: 'gone',
  left: 'has left',
}

// What a node is, in a word or three: its state, if that is what matters, else its role.
export function standing(node: MeshNode): string {
  return node.life === 'alive' ? ROLE_WORDS[node.role] : LIFE_WORDS[node.life]
}

// The kind of a link, for people. Empty while no request has taken one.
export function linkWords(node: MeshNode): string {
  if (node.via === 'lane') return 'lane (TLS over TCP)'
  if (node.via === 'quic') return 'QUIC'
  if (node.via === 'http') return 'HTTP'
  return node.via
}
