// What the page knows: the daemon's status as it streams in, and what follows from it.
//
// Law: the daemon's word is the only source. A page that nobody looks at listens to nothing: a browser has only so many
// connections to a daemon, and people leave pages open.

import { computed, signal } from '@preact/signals'
import type { NodeStatus } from './api'
import { Events } from './events'
import { headers, key, take, use } from './key'
import { modelsOf } from './mesh/models'
import { nodesOf, type MeshNode } from './mesh/nodes'
import { pipelinesOf, type Pipeline } from './mesh/splits'
import { share } from './share'

// "locked": the daemon wants the key, or another one.
export type Contact = 'connecting' | 'live' | 'lost' | 'locked'

// Uptime and free memory change without an event; while somebody looks, they are asked for this often.
const REFRESH_MS = 10_000
const AGAIN_MS = 3000
// The daemon says something every 15 s. A phone that changed its network would wait for the next word for ever.
const SILENCE_MS = 40_000

export const status = signal<NodeStatus | null>(null)
export const contact = signal<Contact>('connecting')
export const refused = signal(false) // whether there was a key, and it was not right

export const nodes = signal<MeshNode[]>([])
export const pipelines = signal<Pipeline[]>([])
export const models = computed(() => (status.value === null ? [] : modelsOf(status.value, nodes.value)))
// The API as this page reaches it: behind a proxy that encrypts, that does too.
export const api = computed(() => (status.value?.api ?? '').replace(/^http:/, location.protocol))
export const idle = computed(() => {
  const known = status.value
  if (known === null || known.models.length > 0 || known.backends.length > 0) return false
  const { mesh } = known
  // Whoever founded a mesh stays "alone" for the daemon: nobody was to be joined. Others may have come since.
  return mesh === null || (mesh.role !== 'client' && mesh.phase === 'alone' && mesh.peers.length === 0)
})

let source: AbortController | null = null
let pending: string | null = null

function told(text: string): void {
  // Of what comes between two frames only the newest is worth drawing.
  if (pending === null) requestAnimationFrame(apply)
  pending = text
}

function apply(): void {
  if (pending === null) return
  const next = share<NodeStatus>(status.value ?? undefined, JSON.parse(pending) as NodeStatus)
  pending = null
  if (contact.value === 'locked') return
  nodes.value = share(nodes.value, nodesOf(next, Date.now() / 1000, nodes.value))
  pipelines.value = share(pipelines.value, pipelinesOf(next))
  status.value = next
  contact.value = 'live'
}

async function listen(): Promise<void> {
  const own = new AbortController()
  source = own
  try {
    const answer = await fetch('/api/events', { headers: headers(), signal: own.signal })
    if (answer.status === 401) {
      lock()
      return
    }
    if (answer.ok && answer.body !== null) await follow(answer.body, own)
  } catch {
    // It is gone, or we let go of it.
  }
  if (source !== own) return
  contact.value = 'lost'
  setTimeout(() => {
    if (source === own) void listen()
  }, AGAIN_MS)
}

async function follow(body: ReadableStream<Uint8Array<ArrayBuffer>>, own: AbortController): Promise<void> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  const events = new Events()
  contact.value = 'live'
  for (;;) {
    const silence = setTimeout(() => own.abort(), SILENCE_MS)
    try {
      const { done, value } = await reader.read()
      if (done) return
      const newest = events.feed(value).at(-1)
      if (newest !== undefined) told(newest)
    } finally {
      clearTimeout(silence)
    }
  }
}

async function refresh(): Promise<void> {
  if (source === null || contact.value !== 'live') return
  try {
    const answer = await fetch('/api/status', { headers: headers() })
    if (answer.ok) told(await answer.text())
    else if (answer.status === 401) lock()
  } catch {
    contact.value = 'lost'
  }
}

function letGo(): void {
  const own = source
  source = null
  own?.abort()
}

// Nothing is shown, and nothing is kept of what was, until there is a key that is right.
export function lock({ forgotten = false } = {}): void {
  letGo()
  refused.value = key.value !== '' && !forgotten
  use('')
  status.value = null
  nodes.value = []
  pipelines.value = []
  contact.value = 'locked'
}

export function unlock(text: string): void {
  use(text)
  refused.value = false
  contact.value = 'connecting'
  letGo()
  void listen()
}

function watch(): void {
  if (document.hidden) letGo()
  else if (source === null && contact.value !== 'locked') void listen()
}

export function begin(): void {
  take()
  addEventListener('hashchange', () => {
    if (take()) unlock(key.value)
  })
  document.addEventListener('visibilitychange', watch)
  setInterval(() => void refresh(), REFRESH_MS)
  watch()
}
