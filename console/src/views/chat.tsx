// Loads the chat (markdown, highlighting, conversations) when it is first opened.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect } from 'preact/hooks'

const view = signal<(() => JSX.Element) | null>(null)
const failed = signal(false)

async function load(): Promise<void> {
  try {
    view.value = (await import('../chat/chat-view')).ChatView
    failed.value = false
  } catch {
    failed.value = true
  }
}

export function Chat(): JSX.Element {
  useEffect(() => {
    if (view.value === null) void load()
  }, [])
  const View = view.value
  if (View !== null) return <View />
  return (
    <p class="waiting" role="status">
      {failed.value
        ? 'The chat could not be loaded because the page was updated. Reload the page.'
        : 'Loading the chat …'}
    </p>
  )
}
