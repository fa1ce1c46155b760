// Messages between the tabs of this page in one browser: each tab sends what it has stored or received.

import type { Chat, Message } from './store'

export type TabMessage =
  | { kind: 'chats'; chats: Chat[] } // stored; one with `deleted` leaves the lists
  | { kind: 'messages'; messages: Message[] } // stored, or a part of an answer that streams
  | { kind: 'progress'; message: string; text: string } // the gateway's progress before the answer
  | { kind: 'purged'; chat: string }
  | { kind: 'stop'; message: string } // a wish: the tab that receives this answer stops it
  | { kind: 'hello' } // a new tab: each tells which answers it receives
  | { kind: 'reload' } // much has changed: read the database again

const NAME = 'mesh-llm chats'
// Very old browsers have no such channel: their tabs read the database when they are shown.
const channel = typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel(NAME)

export function tell(message: TabMessage): void {
  channel?.postMessage(message)
}

export function listen(receive: (message: TabMessage) => void): void {
  if (channel !== null) channel.onmessage = (event) => receive(event.data as TabMessage)
}
