// The chat. What it takes (markdown, highlighting, conversations) is loaded when it is first opened.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect } from 'preact/hooks'

const room = signal<(() => JSX.Element) | null>(null)
const problem = signal(false)

async function load(): Promise<void> {
  try {
    room.value = (await import('../chat/room')).Room
    problem.value = false
  } catch {
    problem.value = true
  }
}

export function Chat(): JSX.Element {
  useEffect(() => {
    if (room.value === null) void load()
  }, [])
  const Room = room.value
  if (Room !== null) return <Room />
  return (
    <p class="waiting" role="status">
      {problem.value ? 'The chat could not be loaded: the page has changed. Load it again.' : 'Opening the chat …'}
    </p>
  )
}
