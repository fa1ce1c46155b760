// What the daemon says, as types. Written by `scripts/console types` from its OpenAPI document; not by hand.

// An OpenAI-compatible server in the pool.
export interface BackendStatus {
  url: string
  healthy: boolean
  models: string[]
  reason: string
}

// A peer from which nothing is taken any more while this node runs, and why.
export interface BannedStatus {
  peer: string
  name: string
  reason: string
}

// An accelerator as the engine sees it; `shared`: its memory is the computer's own; `used`: models may go there.
export interface DeviceStatus {
  name: string
  description: string
  backend: string
  memory_total: number
  memory_free: number
  shared: boolean
  used: boolean
}

// The engine (llama.cpp, built on this machine).
export interface EngineStatus {
  phase: string
  version: string
  progress: ProgressStatus | null
  reason: string
  advice: string
}

// Every answer that is not 200.
export interface ErrorAnswer {
  error: ErrorFacts
}

// What went wrong: `code` for programs, `message` for people.
export interface ErrorFacts {
  code: string
  message: string
}

// The model's file.
export interface FileStatus {
  path: string
  size: number
  architecture: string
  quantization: string
  context_length: number
  digest: string
}

// What one way to serve the model promised: `nodes`, the host first, and the time for one token.
export interface ForecastStatus {
  nodes: string[]
  seconds_per_token: number
}

// An invite, and when it ends (seconds since the epoch; 0: never).
export interface InviteAnswer {
  invite: string
  expires: number
}

// For how many seconds an invite shall be good; 0: for good.
export interface InviteWish {
  expires?: number | null
}

// The key that other machines send as 'Authorization: Bearer KEY', to the API and to this.
export interface KeyAnswer {
  key: string
}

// What this node carries for the host of a split.
export interface LentStatus {
  model: string
  host: string
  session: string
  generation: number
  phase: string
  detail: string
  first: number
  layers: number
  memory: number
}

// Requests at work and waiting, by the model or backend that answers them.
//
// `kind`: engine, backend or peer; `model` is set for a peer. `tokens_per_second` is of the last answer that told it.
export interface LoadStatus {
  target: string
  active: number
  waiting: number
  slots: number
  kind: string
  model: string
  tokens_per_second: number | null
}

// What this machine has for models. `memory_limited`: by a cgroup; `offered`: bytes models may take now, `cap`:
// what --max-vram allows, null for all; `devices` is null until the engine has been asked.
export interface MachineStatus {
  memory_total: number
  memory_available: number
  memory_limited: boolean
  offered: number
  cap: number | null
  devices: DeviceStatus[] | null
}

// The mesh as this node sees it. `phase`: alone, dialling, syncing, joined or failed; ids are hexadecimal.
//
// `memory` (bytes) and `on_disk` are what this node tells the others that it has.
export interface MeshStatus {
  node: string
  mesh: string
  role: string
  phase: string
  reason: string
  incarnation: number
  addresses: string[]
  wants: string[]
  clients: number
  steps: StepStatus[]
  peers: PeerStatus[]
  memory: number
  on_disk: string[]
}

// A model this node serves or is about to. `purpose`: generate, embed or rerank; `input_modalities`: "text", and
// "image" where it sees; both null until the file is there.
export interface ModelStatus {
  name: string
  purpose: string | null
  phase: string
  progress: ProgressStatus | null
  file: FileStatus | null
  engine: ServerStatus | null
  restarts: number
  reason: string
  advice: string
  input_modalities: string[] | null
}

// Everything about this node. `mesh` and `sharing` are null where it goes on alone, for `mesh_reason`. `splits` are
// those it hosts, `lent` is what it carries for the host of another. `elsewhere` is where other machines find this
// console; `read_only` is told to those: they get no invite, and what is its owner's alone is empty or 0.
export interface NodeStatus {
  name: string
  version: string
  snapshot: number
  pid: number
  uptime_seconds: number
  api: string
  console: string
  stopping: boolean
  engine: EngineStatus
  models: ModelStatus[]
  backends: BackendStatus[]
  load: LoadStatus[]
  splits: SplitStatus[]
  mesh: MeshStatus | null
  mesh_reason: string
  sharing: SharingStatus | null
  machine: MachineStatus | null
  lent: LentStatus | null
  elsewhere: string[]
  read_only: boolean
}

// Another node. `rtt` in seconds, null if never measured; `via`: "lane" or "quic" for what requests to it take,
// "" while there have been none; `active` and `waiting` are requests at its models, as far as we heard.
export interface PeerStatus {
  id: string
  name: string
  software: string
  status: string
  since_seconds: number
  reason: string
  linked: boolean
  rtt: number | null
  via: string
  addresses: string[]
  models: string[]
  wants: string[]
  memory: number
  active: number
  waiting: number
  serves: ServedStatus[]
  on_disk: string[]
}

// How far something long has come; `fraction` is null where nobody knows.
export interface ProgressStatus {
  stage: string
  fraction: number | null
  detail: string
}

// A model that another node answers for, as it says. 0: unknown. `size` is that of the file; `input_modalities`:
// "text", and "image" where it sees; null where the node does not say.
export interface ServedStatus {
  name: string
  purpose: string | null
  context_length: number
  slots: number
  size: number
  active: number
  waiting: number
  input_modalities: string[] | null
}

// The process that serves a model. `memory` is what the engine says it needs, `fit` where that is and what was
// given up for it, in words.
export interface ServerStatus {
  pid: number
  socket: string
  slots: number
  context_length: number
  memory: number
  fit: string
  serving_seconds: number
  speculation: SpeculationStatus
}

// `layers` of the model from `first` on, carried by `node`; `phase` and `detail` of its part in the lease.
//
// `rtt` from the host, null if never measured; `via`: "lane" or "quic", what the host's tunnels to it run over;
// `sent` and `received` by them, and `rate` in bytes/s of late, both ways together.
export interface ShareStatus {
  node: string
  name: string
  first: number
  layers: number
  memory: number
  phase: string
  detail: string
  rtt: number | null
  via: string
  sent: number
  received: number
  rate: number
}

// Model files that are exchanged with the mesh. `shares`: whether this node gives any; `limit`: bytes/s that may be
// given now, null for any number; `given`: bytes in all.
export interface SharingStatus {
  shares: boolean
  limit: number | null
  given: number
  giving: TransferStatus[]
  taking: TransferStatus[]
  banned: BannedStatus[]
}

// How the engine guesses ahead: `kind` is none, n-grams or draft (with the model called `draft`), `reason` why no
// more than that. `drafted` and `accepted` tokens since this node began; `acceptance` is null before the first.
export interface SpeculationStatus {
  kind: string
  draft: string
  drafted: number
  accepted: number
  acceptance: number | null
  reason: string
}

// A model that this node hosts with others. `forecast` and `measured` are seconds for one token (null: not yet
// known), `considered` the ways that there were; `reason` says why it is so, or what is missing.
export interface SplitStatus {
  model: string
  session: string
  generation: number
  committed: boolean
  reason: string
  forecast: number | null
  measured: number | null
  considered: ForecastStatus[]
  shares: ShareStatus[]
}

// One way into the mesh that was tried: `peer` is what is known of its id; `state` and `reason` in words.
export interface StepStatus {
  peer: string
  addresses: string[]
  state: string
  reason: string
}

// Model files on their way to or from a peer (`peer`: its id): `bytes` so far, `rate` in bytes/s of late, by "lane"
// or "quic". `what` is the file that is given, or the model of which something is taken.
export interface TransferStatus {
  peer: string
  name: string
  what: string
  bytes: number
  rate: number
  via: string
}
