// The models of the mesh as one list: one entry per model, with its hosts, files and requests. Pure.

import type { DemandStatus, ModelPhase, ModelStatus, NodeStatus, Purpose } from '../api'
import type { MeshNode } from './nodes'
import { bytes } from '../format'

export type Availability = 'serving' | 'starting' | 'failed' | 'requested' | 'unconfirmed' | 'on disk'

export interface MeshModel {
  name: string
  availability: Availability
  phase: ModelPhase | null // on this node; null if this node does not serve it
  purpose: Purpose | null
  vision: boolean | null // whether it accepts images; null: unknown
  callsTools: boolean | null // as the first host says that knows it; null: unknown
  hosts: MeshNode[] // nodes that serve it
  onDisk: string[] // names of nodes that have the file and do not serve it
  aliases: string[] // other names of the file
  wantedBy: string[]
  context: number
  slots: number
  active: number
  waiting: number
  size: number
  here: ModelStatus | null
  demand: DemandStatus | null // what the mesh asks for; null: nothing
}

const ORDER: readonly Availability[] = ['serving', 'starting', 'failed', 'requested', 'unconfirmed', 'on disk']
const STARTING: readonly (ModelPhase | null)[] = ['waiting', 'fetching', 'loading', 'restarting']

export function modelsOf(status: NodeStatus, nodes: readonly MeshNode[]): MeshModel[] {
  const found = new Map<string, MeshModel>()
  const at = (name: string): MeshModel => {
    let model = found.get(name)
    if (model === undefined) {
      model = {
        name,
        availability: 'on disk',
        phase: null,
        purpose: null,
        vision: null,
        callsTools: null,
        hosts: [],
        onDisk: [],
        aliases: [],
        wantedBy: [],
        context: 0,
        slots: 0,
        active: 0,
        waiting: 0,
        size: 0,
        here: null,
        demand: null,
      }
      found.set(name, model)
    }
    return model
  }
  for (const model of status.models) Object.assign(at(model.name), ofHere(model))
  for (const node of nodes) addNode(node, at)
  addFiles(nodes, found, at)
  for (const model of found.values()) model.availability = availabilityOf(model)
  for (const demand of status.mesh?.demand ?? []) {
    const model = found.get(demand.model)
    if (model !== undefined) model.demand = demand
  }
  for (const [name, found] of visionByModel(nodes)) {
    // Requests with images are routed to hosts with vision.
    at(name).vision = found.has(true) || (found.has(null) ? null : false)
  }
  return [...found.values()].sort(inOrder)
}

function ofHere(model: ModelStatus): Partial<MeshModel> {
  return { phase: model.phase, purpose: model.purpose, size: model.file?.size ?? 0, here: model }
}

function addNode(node: MeshNode, at: (name: string) => MeshModel): void {
  if (node.status === 'dead' || node.status === 'left') return
  for (const served of node.models) {
    const model = at(served.name)
    if (served.phase !== 'serving') continue
    model.hosts.push(node)
    if (node.status !== 'alive') continue
    model.purpose ??= served.purpose
    model.callsTools ??= served.callsTools
    model.context = Math.max(model.context, served.context)
    model.slots += served.slots
    model.active += served.active
    model.waiting += served.waiting
    if (!node.here) model.size ||= served.size
  }
  for (const name of node.wants) at(name).wantedBy.push(node.name)
}

// Adds files on disks. A file name that is an alias of a listed model adds no model; two served names stay two models.
function addFiles(
  nodes: readonly MeshNode[],
  found: ReadonlyMap<string, MeshModel>,
  at: (name: string) => MeshModel,
): void {
  const file = canonicalNames(nodes)
  const known = new Map<string, MeshModel[]>()
  for (const model of found.values()) known.set(file(model.name), [...(known.get(file(model.name)) ?? []), model])
  for (const node of nodes) {
    if (node.status === 'dead' || node.status === 'left') continue
    for (const name of node.onDisk) {
      let those = known.get(file(name))
      if (those === undefined) known.set(file(name), (those = [at(file(name))]))
      const mine = those.find((model) => model.name === name)
      for (const model of mine !== undefined ? [mine] : those) {
        if (model.name !== name && !model.aliases.includes(name)) model.aliases.push(name)
        const serves = node.models.some((served) => served.name === model.name)
        if (!serves && !model.onDisk.includes(node.name)) model.onDisk.push(node.name)
      }
    }
  }
}

// Maps each name of a file to one of its names, from the aliases that nodes report.
function canonicalNames(nodes: readonly MeshNode[]): (name: string) => string {
  const next = new Map<string, string>()
  const file = (name: string): string => {
    let found = name
    for (let after = next.get(found); after !== undefined; after = next.get(found)) found = after
    return found
  }
  for (const node of nodes) {
    for (const [alias, name] of Object.entries(node.aliases)) {
      if (file(alias) !== file(name)) next.set(file(alias), file(name))
    }
  }
  return file
}

// What the hosts of each model report about its vision.
function visionByModel(nodes: readonly MeshNode[]): Map<string, Set<boolean | null>> {
  const found = new Map<string, Set<boolean | null>>()
  for (const node of nodes) {
    if (node.status !== 'alive') continue
    for (const { name, vision } of node.models) found.set(name, (found.get(name) ?? new Set()).add(vision))
  }
  return found
}

function availabilityOf(model: MeshModel): Availability {
  if (model.hosts.some((node) => node.status === 'alive')) return 'serving'
  if (model.phase === 'available') return 'serving' // the first request loads it
  if (model.phase === 'failed') return 'failed'
  if (STARTING.includes(model.phase)) return 'starting'
  if (model.hosts.length > 0) return 'unconfirmed'
  return model.wantedBy.length > 0 ? 'requested' : 'on disk'
}

function inOrder(one: MeshModel, other: MeshModel): number {
  const by = ORDER.indexOf(one.availability) - ORDER.indexOf(other.availability)
  return by !== 0 ? by : one.name.localeCompare(other.name)
}

// Models for the chat: text generation, served or starting.
export function chatModels(models: readonly MeshModel[]): MeshModel[] {
  return models.filter((model) => {
    const writes = model.purpose === null || model.purpose === 'generate'
    return (
      writes &&
      (model.availability === 'serving' || model.availability === 'starting' || model.availability === 'unconfirmed')
    )
  })
}

// Why a model has its availability, in a sentence.
export function explanation(model: MeshModel): string {
  const { here } = model
  if (here !== null && here.reason !== '') return `${here.reason} ${here.advice}`.trim()
  if (here?.progress != null) return [here.progress.stage, here.progress.detail].filter(Boolean).join(': ')
  const outlook = model.demand?.outlook ?? ''
  if (outlook !== '' && (model.availability === 'requested' || model.availability === 'on disk'))
    return model.wantedBy.length > 0 ? `Requested by ${listed(model.wantedBy)}. ${outlook}` : outlook
  switch (model.availability) {
    case 'serving':
      return [servedBy(model.hosts), placementOf(here), memoryOf(here), speculationOf(here)].filter(Boolean).join(' ')
    case 'starting':
      return 'Starting.'
    case 'failed':
      return 'Failed for an unknown reason.'
    case 'requested':
      return model.onDisk.length > 0
        ? `Requested by ${listed(model.wantedBy)}. ${listed(model.onDisk)} has the file and may serve it.`
        : `Requested by ${listed(model.wantedBy)}, but no known node has the file.`
    case 'unconfirmed':
      return model.hosts.some((node) => node.here)
        ? `Served by ${listed(model.hosts.map((node) => node.name))} when this node answered last.`
        : `Reported to be served by ${listed(model.hosts.map((node) => node.name))}, which this node cannot reach.`
    case 'on disk':
      return `On the disk of ${listed(model.onDisk)}, not loaded. To serve it, run there: mesh-llm load ${model.name}`
  }
}

function servedBy(hosts: readonly MeshNode[]): string {
  return hosts.length === 1 ? `Served by ${hosts[0]?.name}.` : `Served by ${hosts.length} nodes.`
}

// Where the model is in this machine's memory, as the daemon describes it.
function placementOf(here: ModelStatus | null): string {
  const text = here?.engine?.placement_text ?? ''
  return text === '' ? '' : `Placement here: ${text.replace(/\.$/, '')}.`
}

// What the engine process here takes, and what of it is not weights, context and buffers.
function memoryOf(here: ModelStatus | null): string {
  const engine = here?.engine
  if (engine == null) return ''
  const used = engine.memory_used === null ? '' : `${bytes(engine.memory_used)} now, `
  const parts = Object.entries(engine.memory_parts).map(([name, size]) => `${name} ${bytes(size)}`)
  const of = parts.length === 0 ? '' : ` (${parts.join(', ')} of it)`
  return `Memory here: ${used}at most ${bytes(engine.memory)}${of}.`
}

function speculationOf(here: ModelStatus | null): string {
  const speculation = here?.engine?.speculation
  if (speculation === undefined || speculation.kind === 'none')
    return speculation?.reason ? `Speculative decoding: off (${speculation.reason}).` : ''
  const source = speculation.kind === 'draft' ? `draft model ${speculation.draft_model}` : 'n-gram'
  const { acceptance } = speculation
  const accepted = acceptance === null ? '' : `, ${Math.round(acceptance * 100)} % of draft tokens accepted`
  return `Speculative decoding: ${source}${accepted}.`
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, 3)
  return names.length > 3 ? `${shown.join(', ')} and ${names.length - 3} more` : shown.join(', ')
}
