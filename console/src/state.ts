// What the page knows: the daemon's status as it streams in, and what follows from it.
//
// Law: the daemon's word is the only source. A page that nobody looks at listens to nothing: a browser has only so many
// connections to a daemon, and people leave pages open.

import { computed, signal } from '@preact/signals'
import type { NodeStatus } from './api'
import { modelsOf } from './mesh/models'
import { nodesOf, type MeshNode } from './mesh/nodes'
import { pipelinesOf, type Pipeline } from './mesh/splits'
import { share } from './share'

export type Contact = 'connecting' | 'live' | 'lost'

// Uptime and free memory change without an event; while somebody looks, they are asked for this often.
const REFRESH_MS = 10_000

export const status = signal<NodeStatus | null>(null)
export const contact = signal<Contact>('connecting')

export const nodes = signal<MeshNode[]>([])
export const pipelines = signal<Pipeline[]>([])
export const models = computed(() => (status.value === null ? [] : modelsOf(status.value, nodes.value)))
export const idle = computed(() => {
  const known = status.value
  if (known === null || known.models.length > 0 || known.backends.length > 0) return false
  const { mesh } = known
  // Whoever founded a mesh stays "alone" for the daemon: nobody was to be joined. Others may have come since.
  return mesh === null || (mesh.role !== 'client' && mesh.phase === 'alone' && mesh.peers.length === 0)
})

let source: EventSource | null = null
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
  nodes.value = share(nodes.value, nodesOf(next, Date.now() / 1000, nodes.value))
  pipelines.value = share(pipelines.value, pipelinesOf(next))
  status.value = next
  contact.value = 'live'
}

function listen(): void {
  source = new EventSource('/api/events')
  source.addEventListener('status', (event: MessageEvent<string>) => told(event.data))
  source.addEventListener('open', () => (contact.value = 'live'))
  source.addEventListener('error', () => {
    contact.value = 'lost'
    // The browser tries again by itself, unless the daemon answered with something else than a stream.
    if (source?.readyState === EventSource.CLOSED) setTimeout(relisten, 3000, source)
  })
}

function relisten(old: EventSource): void {
  if (source === old) listen()
}

async function refresh(): Promise<void> {
  if (source === null || contact.value !== 'live') return
  try {
    const answer = await fetch('/api/status')
    if (answer.ok) told(await answer.text())
  } catch {
    contact.value = 'lost'
  }
}

function watch(): void {
  if (document.hidden) {
    source?.close()
    source = null
  } else if (source === null) {
    listen()
  }
}

export function begin(): void {
  document.addEventListener('visibilitychange', watch)
  setInterval(() => void refresh(), REFRESH_MS)
  watch()
}
