// The models of the mesh as one list: served, on their way, wanted, or only lying on a disk; and who has each.
//
// Law: pure. A model is one line whoever has it; this node's own word on it comes first.

import type { ModelPhase, ModelStatus, NodeStatus, Purpose } from '../api'
import type { MeshNode } from './nodes'

export type Standing = 'serving' | 'coming' | 'failed' | 'wanted' | 'heard of' | 'on disk'

export interface MeshModel {
  name: string
  standing: Standing
  phase: ModelPhase | null // on this node; null if this node does not serve it
  purpose: Purpose | null
  sees: boolean | null // whether images can be shown to it: false if nobody who carries it can take them
  hosts: MeshNode[] // who answers for it
  onDisk: string[] // names of the nodes that have its file and do not serve it
  aliases: string[] // other names of that file, by which nobody serves or wants it
  wantedBy: string[]
  context: number
  slots: number
  active: number
  waiting: number
  size: number
  here: ModelStatus | null
}

const ORDER: readonly Standing[] = ['serving', 'coming', 'failed', 'wanted', 'heard of', 'on disk']
const COMING: readonly (ModelPhase | null)[] = ['waiting', 'fetching', 'loading', 'restarting']

export function modelsOf(status: NodeStatus, nodes: readonly MeshNode[]): MeshModel[] {
  const found = new Map<string, MeshModel>()
  const at = (name: string): MeshModel => {
    let model = found.get(name)
    if (model === undefined) {
      model = {
        name,
        standing: 'on disk',
        phase: null,
        purpose: null,
        sees: null,
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
      }
      found.set(name, model)
    }
    return model
  }
  for (const model of status.models) Object.assign(at(model.name), ofHere(model))
  for (const node of nodes) gather(node, at)
  lay(nodes, found, at)
  for (const model of found.values()) model.standing = standingOf(model)
  for (const [name, told] of sight(nodes)) {
    // One that sees is asked where there is one; of whom nothing is known may see.
    at(name).sees = told.has(true) || (told.has(null) ? null : false)
  }
  return [...found.values()].sort(inOrder)
}

function ofHere(model: ModelStatus): Partial<MeshModel> {
  return { phase: model.phase, purpose: model.purpose, size: model.file?.size ?? 0, here: model }
}

function gather(node: MeshNode, at: (name: string) => MeshModel): void {
  if (node.status === 'dead' || node.status === 'left') return
  for (const carried of node.models) {
    const model = at(carried.name)
    if (carried.phase !== 'serving') continue
    model.hosts.push(node)
    if (node.status !== 'alive') continue
    model.purpose ??= carried.purpose
    model.context = Math.max(model.context, carried.context)
    model.slots += carried.slots
    model.active += carried.active
    model.waiting += carried.waiting
    if (!node.here) model.size ||= carried.memory
  }
  for (const name of node.wants) at(name).wantedBy.push(node.name)
}

// What lies on disks, after what is served and wanted: a name of a file that a model here has already is no model of its
// own. What callers can ask for by two names stays two.
function lay(nodes: readonly MeshNode[], found: ReadonlyMap<string, MeshModel>, at: (name: string) => MeshModel): void {
  const file = filesOf(nodes)
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
        const serves = node.models.some((carried) => carried.name === model.name)
        if (!serves && !model.onDisk.includes(node.name)) model.onDisk.push(node.name)
      }
    }
  }
}

// For each name, the one that stands for its file: what the nodes say of their own, put together.
function filesOf(nodes: readonly MeshNode[]): (name: string) => string {
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

// Of each model, what those who carry it say of its seeing.
function sight(nodes: readonly MeshNode[]): Map<string, Set<boolean | null>> {
  const told = new Map<string, Set<boolean | null>>()
  for (const node of nodes) {
    if (node.status !== 'alive') continue
    for (const { name, sees } of node.models) told.set(name, (told.get(name) ?? new Set()).add(sees))
  }
  return told
}

function standingOf(model: MeshModel): Standing {
  if (model.hosts.some((node) => node.status === 'alive')) return 'serving'
  if (model.phase === 'failed') return 'failed'
  if (COMING.includes(model.phase)) return 'coming'
  if (model.hosts.length > 0) return 'heard of'
  return model.wantedBy.length > 0 ? 'wanted' : 'on disk'
}

function inOrder(one: MeshModel, other: MeshModel): number {
  const by = ORDER.indexOf(one.standing) - ORDER.indexOf(other.standing)
  return by !== 0 ? by : one.name.localeCompare(other.name)
}

// What can be chatted with: everything that writes text and is served, or about to be.
export function chattable(models: readonly MeshModel[]): MeshModel[] {
  return models.filter((model) => {
    const writes = model.purpose === null || model.purpose === 'generate'
    return writes && (model.standing === 'serving' || model.standing === 'coming' || model.standing === 'heard of')
  })
}

// Why a model is as it is, in a sentence.
export function reasonOf(model: MeshModel): string {
  const { here } = model
  if (here !== null && here.reason !== '') return `${here.reason} ${here.advice}`.trim()
  if (here?.progress != null) return [here.progress.stage, here.progress.detail].filter(Boolean).join(': ')
  switch (model.standing) {
    case 'serving':
      return [servedBy(model.hosts), placementOf(here), speculationOf(here)].filter(Boolean).join(' ')
    case 'coming':
      return 'On its way.'
    case 'failed':
      return 'It cannot be served; no reason is known.'
    case 'wanted':
      return model.onDisk.length > 0
        ? `Asked for by ${listed(model.wantedBy)}. ${listed(model.onDisk)} has the file and may take it.`
        : `Asked for by ${listed(model.wantedBy)}, but no node that is known has its file.`
    case 'heard of':
      return `${listed(model.hosts.map((node) => node.name))} said it serves this, but does not answer this node.`
    case 'on disk':
      return `Lies on the disk of ${listed(model.onDisk)}; nobody asked for it. Serve it with --model ${model.name}.`
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
