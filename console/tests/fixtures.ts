// Statuses, models and nodes for tests, with the fields that a test needs.

import type { ModelPhase, NodeStatus, PeerInfo } from '../src/api'
import type { MeshNode } from '../src/mesh/nodes'

export function peer(id: string, more: Partial<PeerInfo> = {}): PeerInfo {
  return {
    id,
    name: `node ${id}`,
    software: 'mesh-llm 0.1.0',
    status: 'alive',
    since_seconds: 60,
    reason: '',
    linked: true,
    owned: true,
    rtt: 0.01,
    transport: 'lane',
    addresses: [],
    models: [],
    wants: [],
    memory: 0,
    memory_planned: null,
    memory_used: null,
    active: 0,
    waiting: 0,
    serves: [],
    on_disk: [],
    aliases: {},
    ...more,
  }
}

export function serves(name: string): PeerInfo['serves'][number] {
  const known = { name, purpose: 'generate' as const, context_length: 4096, slots: 4, size: 1000 }
  return { ...known, active: 1, waiting: 0, input_modalities: null, calls_tools: null }
}

export function status(peers: PeerInfo[] = [], more: Partial<NodeStatus> = {}): NodeStatus {
  return {
    sandbox: null,
    notices: [],
    name: 'here',
    version: '0.1.0',
    snapshot: 1,
    pid: 1,
    uptime_seconds: 1,
    api: 'http://localhost:9337/v1',
    console: '',
    stopping: false,
    engine: { phase: 'ready', version: '', progress: null, reason: '', advice: '' },
    models: [],
    backends: [],
    load: [],
    mesh_reason: '',
    machine: null,
    sharing: null,
    splits: [],
    worker_lease: null,
    lan_urls: [],
    start: null,
    read_only: false,
    dropped: [],
    mesh: {
      node: 'me',
      mesh: 'm',
      role: 'node',
      phase: 'joined',
      reason: '',
      incarnation: 1,
      addresses: [],
      wants: [],
      clients: 0,
      join_attempts: [],
      peers,
      memory: 0,
      memory_planned: null,
      memory_used: null,
      on_disk: [],
      aliases: {},
      client_list: [],
      away: [],
      demand: [],
      plans: [],
    },
    ...more,
  }
}

export function model(
  name: string,
  phase: ModelPhase,
  more: Partial<NodeStatus['models'][number]> = {},
): NodeStatus['models'][number] {
  return {
    name,
    purpose: 'generate',
    phase,
    progress: null,
    file: null,
    engine: null,
    restarts: 0,
    reason: '',
    advice: '',
    input_modalities: null,
    loaded: phase === 'serving',
    idle_seconds: null,
    warning: '',
    unload_seconds: null,
    ...more,
  }
}

export function demand(
  name: string,
  more: Partial<NonNullable<NodeStatus['mesh']>['demand'][number]> = {},
): NonNullable<NodeStatus['mesh']>['demand'][number] {
  const figures = { requests: 4, nodes: 1, wishes: 0, hosts: 0, loading: 0, active: 0, waiting: 0 }
  return { model: name, ...figures, outlook: '', obstacles: [], ...more }
}

export function node(id: string, more: Partial<MeshNode> = {}): MeshNode {
  return {
    id,
    name: id,
    here: false,
    role: 'standby',
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
    owned: true,
    rtt: null,
    transport: null,
    addresses: [],
    since: null,
    next: null,
    ...more,
  }
}
