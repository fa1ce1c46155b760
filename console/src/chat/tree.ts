// The messages of a chat form a tree: an edited question and a repeated answer are further children of the same parent.
// The page shows the path to one leaf. Pure.

import type { Message } from './store'

export type Messages = ReadonlyMap<string, Message>

// The messages from the first one to `leaf`.
export function pathTo(messages: Messages, leaf: string | null): Message[] {
  const found: Message[] = []
  const seen = new Set<string>()
  for (let id = leaf; id !== null && !seen.has(id);) {
    seen.add(id)
    const message = messages.get(id)
    if (message === undefined) break
    found.push(message)
    id = message.parent
  }
  return found.reverse()
}

export type Children = ReadonlyMap<string | null, readonly Message[]>

// The children of each message, the oldest first.
export function childrenOf(messages: Messages): Children {
  const found = new Map<string | null, Message[]>()
  for (const message of messages.values()) {
    const known = found.get(message.parent)
    if (known === undefined) found.set(message.parent, [message])
    else known.push(message)
  }
  for (const list of found.values()) list.sort(inOrder)
  return found
}

function inOrder(one: Message, other: Message): number {
  return one.made - other.made || (one.id < other.id ? -1 : 1)
}

// The newest leaf below a message, which is where the path through it ends.
export function newestLeaf(children: Children, id: string): string {
  const seen = new Set<string>()
  let found = id
  while (!seen.has(found)) {
    seen.add(found)
    const next = children.get(found)?.at(-1)
    if (next === undefined) break
    found = next.id
  }
  return found
}
