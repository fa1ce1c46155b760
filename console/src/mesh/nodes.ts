// The nodes of the mesh as one list: this node, its peers and its backends. Pure. Unknown values are null, not 0.

import { sharesByNode, type LayerShare } from './splits'
import {
  PEER_STATUSES,
  type ClientInfo,
  type LoadStatus,
  type Modality,
  type ModelPhase,
  type ModelStatus,
  type NodePlanStatus,
  type NodeStatus,
  type PeerInfo,
  type PeerStatus,
  type Purpose,
  type ServedStatus,
  type TransportKind,
} from '../api'

export type DisplayRole = 'host' | 'worker' | 'standby' | 'client' | 'backend'

export interface NodeModel {
  name: string
  phase: ModelPhase
  purpose: Purpose | null
  vision: boolean | null // whether it accepts images; null: unknown
  callsTools: boolean | null // by a test or its owner's word; null: unknown
  context: number
  slots: number
  active: number
  waiting: number
  planned: number | null // bytes that its engine process may come to; null: unknown, as of other nodes
  used: number | null // bytes that it takes now
  size: number // of the file; 0: unknown
  speed: number | null
}

export interface MeshNode {
  id: string
  name: string
  here: boolean
  role: DisplayRole
  status: PeerStatus
  reason: string
  version: string
  models: NodeModel[]
  wants: string[]
  onDisk: string[]
  aliases: Record<string, string> // maps file names on its disk to another name of the same file
  shares: LayerShare[] // its layers of split models
  memory: number // offered for further models, in bytes
  planned: number | null // bytes that its engine processes may come to; null: none run, or unknown
  used: number | null // bytes that they take now
  linked: boolean
  owned: boolean // this node, a backend of it, or one of the owner's own machines; others read the prompts they answer
  rtt: number | null
  transport: TransportKind | 'http' | null // null: no request yet
  addresses: string[]
  since: number | null // when its status began, in whole seconds since the epoch
  next: NodePlanStatus | null // what it does next for the demand; null: not known
}

// All nodes, this one first. `wall` is the time in seconds since the epoch, `before` the previous result.
export function nodesOf(status: NodeStatus, wall: number, before: readonly MeshNode[] = []): MeshNode[] {
  const known = new Map(before.map((node) => [node.id, node]))
  const peers = (status.mesh?.peers ?? []).map((peer) => peerNode(peer, status.load, wall, known.get(peer.id)))
  const clients = (status.mesh?.client_list ?? []).map((client) => clientNode(client, wall, known.get(client.id)))
  const shares = sharesByNode(status)
  const next = new Map((status.mesh?.plans ?? []).map((plan) => [plan.node, plan]))
  const listed = [
    ownNode(status),
    ...peers,
    ...clients,
    ...status.backends.map((backend) => backendNode(backend, status.load)),
  ]
  const found = listed.map((node) => ({ ...node, next: next.get(node.id) ?? null }))
  return shares.size === 0 ? found : found.map((node) => withShares(node, shares.get(node.id) ?? []))
}

// The nodes while this node does not answer: what was known last, with no claim that it still holds.
export function lastKnown(nodes: readonly MeshNode[]): MeshNode[] {
  return nodes.map((node) => {
    const models = node.models.map((model) => ({ ...model, active: 0, waiting: 0 }))
    if (node.here)
      return { ...node, models, next: null, status: 'suspect', reason: 'It does not answer. This was known last.' }
    return node.status === 'alive'
      ? { ...node, models, status: 'unverified', linked: false, next: null }
      : { ...node, models, next: null }
  })
}

function withShares(node: MeshNode, shares: LayerShare[]): MeshNode {
  const works = shares.some((share) => share.phase !== 'ended')
  return { ...node, shares, role: works && node.role === 'standby' ? 'worker' : node.role }
}

function ownNode(status: NodeStatus): MeshNode {
  const models = status.models.map((model) => ownModel(model, status.load))
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
    shares: [],
    memory: mesh?.memory ?? 0,
    ...ownMemory(status),
    linked: true,
    owned: true,
    rtt: null,
    transport: null,
    addresses: mesh?.addresses ?? [],
    since: null,
    next: null,
  }
}

// What the engine processes here take: the same figures as other nodes publish, and not rounded.
function ownMemory({ models, worker_lease: lease }: NodeStatus): Pick<MeshNode, 'planned' | 'used'> {
  const engines = models.flatMap(({ engine }) => (engine === null ? [] : [engine]))
  const parts = lease === null ? engines : [...engines, lease]
  const planned = parts.reduce((sum, part) => sum + part.memory, 0)
  const used = parts.reduce((sum, part) => sum + (part.memory_used ?? 0), 0)
  return { planned: planned || null, used: used || null }
}

function ownModel(model: ModelStatus, load: readonly LoadStatus[]): NodeModel {
  const { engine } = model
  const busy =
    engine === null ? undefined : load.find((entry) => entry.kind === 'engine' && entry.target === model.name)
  return {
    name: model.name,
    phase: model.phase,
    purpose: model.purpose,
    vision: visionOf(model.input_modalities),
    callsTools: engine?.calls_tools ?? null,
    context: engine?.context_length ?? 0,
    slots: engine?.slots ?? 0,
    active: busy?.active ?? 0,
    waiting: busy?.waiting ?? 0,
    planned: engine?.memory ?? null,
    used: engine?.memory_used ?? null,
    size: model.file?.size ?? 0,
    speed: busy?.tokens_per_second ?? null,
  }
}

function peerNode(peer: PeerInfo, load: readonly LoadStatus[], wall: number, before: MeshNode | undefined): MeshNode {
  const status = PEER_STATUSES.find((known) => known === peer.status) ?? 'unverified' // a newer daemon may know more
  // A member that has gone serves nothing, whatever its record says.
  const serves = status === 'dead' || status === 'left' ? [] : peer.serves
  const began = Math.round(wall - peer.since_seconds)
  // Latency moves the calculated moment by a second or two.
  const steady = before?.status === status && before.since !== null && Math.abs(before.since - began) <= 2
  return {
    id: peer.id,
    name: peer.name || 'unnamed',
    here: false,
    role: serves.length > 0 ? 'host' : 'standby',
    status,
    reason: peer.reason,
    version: peer.software.replace(/^mesh-llm /, ''),
    models: serves.map((served) =>
      peerModel(
        served,
        load.find((one) => isLoadOf(one, peer.id, served.name)),
      ),
    ),
    wants: peer.wants,
    onDisk: peer.on_disk,
    aliases: peer.aliases,
    shares: [],
    memory: peer.memory,
    planned: peer.memory_planned,
    used: peer.memory_used,
    linked: peer.linked,
    owned: peer.owned,
    rtt: peer.rtt,
    transport: peer.transport,
    addresses: peer.addresses,
    since: steady ? before.since : began,
    next: null,
  }
}

// A client that is linked to this node: it uses the API, and serves nothing.
function clientNode(client: ClientInfo, wall: number, before: MeshNode | undefined): MeshNode {
  const began = Math.round(wall - client.since_seconds)
  const steady = before?.role === 'client' && before.since !== null && Math.abs(before.since - began) <= 2
  return {
    id: client.id,
    name: client.name || 'unnamed',
    here: false,
    role: 'client',
    status: 'alive',
    reason: '',
    version: '',
    models: [],
    wants: [],
    onDisk: [],
    aliases: {},
    shares: [],
    memory: 0,
    planned: null,
    used: null,
    linked: true,
    owned: true, // it answers no requests
    rtt: client.rtt,
    transport: null,
    addresses: [],
    since: steady ? before.since : began,
    next: null,
  }
}

function isLoadOf(entry: LoadStatus, peer: string, model: string): boolean {
  return entry.kind === 'peer' && entry.target === peer && entry.model === model
}

function peerModel(served: ServedStatus, load: LoadStatus | undefined): NodeModel {
  return {
    name: served.name,
    phase: 'serving',
    purpose: served.purpose,
    vision: visionOf(served.input_modalities),
    callsTools: served.calls_tools,
    context: served.context_length,
    slots: served.slots,
    active: served.active,
    waiting: served.waiting,
    planned: null,
    used: null,
    size: served.size,
    speed: load?.tokens_per_second ?? null,
  }
}

function visionOf(modalities: readonly Modality[] | null): boolean | null {
  return modalities?.includes('image') ?? null
}

function backendNode(backend: NodeStatus['backends'][number], load: readonly LoadStatus[]): MeshNode {
  const busy = load.find((entry) => entry.kind === 'backend' && entry.target === backend.url)
  const models = backend.models.map((name): NodeModel => {
    return {
      name,
      phase: 'serving',
      purpose: null,
      vision: null,
      callsTools: null,
      context: 0,
      slots: 0,
      active: 0,
      waiting: 0,
      planned: null,
      used: null,
      size: 0,
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
    shares: [],
    memory: 0,
    planned: null,
    used: null,
    linked: true,
    owned: true,
    rtt: null,
    transport: 'http',
    addresses: backend.url.includes('://') ? [backend.url] : [], // redacted on other devices
    since: null,
    next: null,
  }
}

export function loadOf(node: MeshNode): { active: number; waiting: number; slots: number } {
  let [active, waiting, slots] = [0, 0, 0]
  for (const model of node.models) {
    active += model.active
    waiting += model.waiting
    slots += model.slots
  }
  return { active, waiting, slots }
}

const CHANGES = ['takes', 'follows', 'loads', 'moves', 'last host', 'works']

// What a node is about to do or to keep for the demand; empty if it goes on as it is.
export function changeText(node: MeshNode): string {
  return node.next !== null && CHANGES.includes(node.next.act) ? node.next.text : ''
}

// The node that a target stands for: "engine", "backend URL" or "peer ID", where the id may be shortened.
export function targetText(target: string, nodes: readonly MeshNode[]): string {
  const [kind = '', id = ''] = target.split(' ', 2)
  if (kind === 'engine') return nodes.find((node) => node.here)?.name ?? 'this node'
  if (kind === 'peer') return nodes.find((node) => node.id.startsWith(id))?.name ?? id.slice(0, 10)
  if (kind === 'backend') return id === '' ? 'a backend' : id.replace(/^https?:\/\//, '') // redacted: no URL
  return target
}

// Whether a target is a node of another member, which reads the prompts that it answers.
export function isForeign(target: string, nodes: readonly MeshNode[]): boolean {
  const [kind = '', id = ''] = target.split(' ', 2)
  return kind === 'peer' && id !== '' && nodes.some((node) => node.id.startsWith(id) && !node.owned)
}

const ROLE_TEXTS: Record<DisplayRole, string> = {
  host: 'host',
  worker: 'worker',
  standby: 'idle',
  client: 'client',
  backend: 'backend',
}
const STATUS_TEXTS: Record<PeerStatus, string> = {
  alive: 'alive',
  suspect: 'not responding',
  unverified: 'unverified',
  dead: 'dead',
  left: 'left',
}

const TRANSPORT_TEXTS = { lane: 'fast connection (lane)', quic: 'connection (QUIC)', http: 'HTTP' } as const

// A node's role, or its status if it is not alive.
export function statusText(node: MeshNode): string {
  return node.status === 'alive' ? ROLE_TEXTS[node.role] : STATUS_TEXTS[node.status]
}

// How many requests a node answers: "1 of 4 slots busy, 2 waiting"; empty if there is nothing to say.
export function loadText(node: MeshNode): string {
  const { active, waiting, slots } = loadOf(node)
  const busy = slots > 0 ? `${active} of ${slots} slots busy` : active > 0 ? `${active} active` : ''
  return [busy, waiting > 0 ? `${waiting} waiting` : ''].filter(Boolean).join(', ')
}

// The transport of requests to a node; empty before the first request.
export function transportText(node: MeshNode): string {
  return node.transport === null ? '' : TRANSPORT_TEXTS[node.transport]
}
