// The page's state: the daemon's status, streamed while the page is visible, and values derived from it.

import { computed, signal } from '@preact/signals'
import type { NodeStatus } from './api'
import { Events } from './events'
import { consoleHeaders, key, setKey, takeKeyFromAddress } from './key'
import { modelsOf } from './mesh/models'
import { lastKnown, nodesOf, type MeshNode } from './mesh/nodes'
import { pipelinesOf, type Pipeline } from './mesh/splits'
import { keepUnchanged } from './structural-sharing'
import { isLoopback, takeTokenFromAddress } from './token'

// "locked": the daemon requires the key, or has another one.
export type ConnectionState = 'connecting' | 'live' | 'lost' | 'locked'

// Uptime and free memory change without an event.
const REFRESH_MS = 10_000
const RETRY_MS = 3000
// The daemon writes at least every 15 s. A phone that changes its network gets no error, only silence.
const TIMEOUT_MS = 40_000

export const status = signal<NodeStatus | null>(null)
export const connection = signal<ConnectionState>('connecting')
export const keyRejected = signal(false) // the daemon has refused a key
export const boardChanges = signal(0) // how often the blackboard has changed since the page was opened

const reported = signal<MeshNode[]>([])
const reportedPipelines = signal<Pipeline[]>([])
// While the daemon does not answer, what was known last, marked as such.
export const nodes = computed(() => (connection.value === 'lost' ? lastKnown(reported.value) : reported.value))
export const pipelines = computed(() => (connection.value === 'lost' ? [] : reportedPipelines.value))
export const models = computed(() => (status.value === null ? [] : modelsOf(status.value, nodes.value)))
// The API's URL, with the page's protocol: a TLS proxy in front of the page serves the API as well.
export const api = computed(() => (status.value?.api ?? '').replace(/^http:/, location.protocol))
// "visitor": on the node's machine, but without the token of its run, so that nothing can be changed from here;
// "remote": on another device, with the key.
export const access = computed<'owner' | 'visitor' | 'remote'>(() => {
  if (status.value?.read_only !== true) return 'owner'
  return isLoopback(location.hostname) ? 'visitor' : 'remote'
})
export const idle = computed(() => {
  const known = status.value
  if (known === null || known.models.length > 0 || known.backends.length > 0) return false
  const { mesh } = known
  // The node that creates a mesh stays in phase "alone" after others have joined.
  return mesh === null || (mesh.role !== 'client' && mesh.phase === 'alone' && mesh.peers.length === 0)
})

let source: AbortController | null = null
let pending: string | null = null

function receive(text: string): void {
  // Only the newest status is drawn in a frame.
  if (pending === null) requestAnimationFrame(apply)
  pending = text
}

function apply(): void {
  if (pending === null) return
  const next = keepUnchanged<NodeStatus>(status.value ?? undefined, JSON.parse(pending) as NodeStatus)
  pending = null
  if (connection.value === 'locked') return
  reported.value = keepUnchanged(reported.value, nodesOf(next, Date.now() / 1000, reported.value))
  reportedPipelines.value = keepUnchanged(reportedPipelines.value, pipelinesOf(next))
  status.value = next
  connection.value = 'live'
}

async function connect(): Promise<void> {
  const own = new AbortController()
  source = own
  try {
    const response = await fetch('/api/events', { headers: consoleHeaders(), signal: own.signal })
    if (response.status === 401) {
      lock()
      return
    }
    if (response.ok && response.body !== null) await readEvents(response.body, own)
  } catch {
    // The connection was lost, or disconnect() aborted it.
  }
  if (source !== own) return
  connection.value = 'lost'
  setTimeout(() => {
    if (source === own) void connect()
  }, RETRY_MS)
}

async function readEvents(body: ReadableStream<Uint8Array<ArrayBuffer>>, own: AbortController): Promise<void> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  const events = new Events()
  connection.value = 'live'
  for (;;) {
    const timeout = setTimeout(() => own.abort(), TIMEOUT_MS)
    try {
      const { done, value } = await reader.read()
      if (done) return
      const found = events.feed(value)
      const newest = found.findLast((event) => event.name === 'status')
      if (newest !== undefined) receive(newest.data)
      if (found.some((event) => event.name === 'blackboard')) boardChanges.value += 1
    } finally {
      clearTimeout(timeout)
    }
  }
}

async function refresh(): Promise<void> {
  if (source === null || connection.value !== 'live') return
  try {
    const response = await fetch('/api/status', { headers: consoleHeaders() })
    if (response.ok) receive(await response.text())
    else if (response.status === 401) lock()
  } catch {
    connection.value = 'lost'
  }
}

function disconnect(): void {
  const own = source
  source = null
  own?.abort()
}

// Clears the state and shows the key prompt.
export function lock({ forgotten = false } = {}): void {
  disconnect()
  keyRejected.value = key.value !== '' && !forgotten
  setKey('')
  status.value = null
  reported.value = []
  reportedPipelines.value = []
  connection.value = 'locked'
}

export function unlock(text: string): void {
  setKey(text)
  keyRejected.value = false
  connection.value = 'connecting'
  disconnect()
  void connect()
}

// A browser has few connections per host, so that a hidden page disconnects.
function followVisibility(): void {
  if (document.hidden) disconnect()
  else if (source === null && connection.value !== 'locked') void connect()
}

export function start(): void {
  takeKeyFromAddress()
  takeTokenFromAddress()
  addEventListener('hashchange', () => {
    if (takeKeyFromAddress() || takeTokenFromAddress()) unlock(key.value)
  })
  document.addEventListener('visibilitychange', followVisibility)
  setInterval(() => void refresh(), REFRESH_MS)
  followVisibility()
}
