// Views that are loaded when they are first opened: the chat (markdown, highlighting, conversations) and the blackboard.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect } from 'preact/hooks'

type View = () => JSX.Element

function later(name: string, load: () => Promise<View>): View {
  const view = signal<View | null>(null)
  const failed = signal(false)
  const begin = async (): Promise<void> => {
    try {
      view.value = await load()
      failed.value = false
    } catch {
      failed.value = true
    }
  }
  return function Later(): JSX.Element {
    useEffect(() => {
      if (view.value === null) void begin()
    }, [])
    const Loaded = view.value
    if (Loaded !== null) return <Loaded />
    return (
      <p class="waiting" role="status">
        {failed.value
          ? `The ${name} could not be loaded because the page was updated. Reload the page.`
          : `Loading the ${name} …`}
      </p>
    )
  }
}

export const Chat = later('chat', async () => (await import('../chat/chat-view')).ChatView)
export const Blackboard = later('blackboard', async () => (await import('../board/board-view')).BoardView)
