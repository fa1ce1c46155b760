// Polls the last API requests while the Requests view is open and the page is visible.

import { signal } from '@preact/signals'
import type { RequestsAnswer, RequestStatus } from './api'
import { consoleHeaders } from './key'
import { keepUnchanged } from './structural-sharing'
import { lock } from './state'

const POLL_MS = 2000

// null: not loaded yet
export const requests = signal<RequestStatus[] | null>(null)
export const requestsFailed = signal(false)

// Starts to poll; returns the function that stops it.
export function pollRequests(): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined
  let current: AbortController | null = null
  const poll = async (): Promise<void> => {
    const own = new AbortController()
    current = own
    await load(own.signal)
    if (current === own) timer = setTimeout(() => void poll(), POLL_MS)
  }
  const stop = (): void => {
    clearTimeout(timer)
    current?.abort()
    current = null
  }
  const follow = (): void => {
    stop()
    if (!document.hidden) void poll()
  }
  document.addEventListener('visibilitychange', follow)
  follow()
  return () => {
    document.removeEventListener('visibilitychange', follow)
    stop()
  }
}

async function load(signal: AbortSignal): Promise<void> {
  try {
    const response = await fetch('/api/requests', { headers: consoleHeaders(), signal })
    if (response.status === 401) {
      requests.value = null
      lock()
      return
    }
    if (!response.ok) throw new Error(`status ${response.status}`)
    const answer = (await response.json()) as RequestsAnswer
    requests.value = keepUnchanged(requests.value ?? undefined, answer.requests)
    requestsFailed.value = false
  } catch {
    if (!signal.aborted) requestsFailed.value = true
  }
}
