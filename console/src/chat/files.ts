// Saves chats as files and imports them.

import { add, everything, newId } from './chats'
import type { Chat } from './store'
import { asMarkdown, exported, fileName, imported, MAX_FILE_BYTES, renewed, type WholeChat } from './transfer'
import type { Messages } from './tree'

export function saveChatAsJson(chat: Chat, messages: Messages): void {
  const text = exported([{ chat, messages: [...messages.values()] }], new Date())
  save(fileName(chat.title, 'json'), 'application/json', text)
}

export function saveChatAsMarkdown(chat: Chat, messages: Messages): void {
  save(fileName(chat.title, 'md'), 'text/markdown', asMarkdown(chat, messages))
}

export async function saveAllChats(): Promise<void> {
  const now = new Date()
  save(`mesh-llm-chats-${now.toISOString().slice(0, 10)}.json`, 'application/json', exported(await everything(), now))
}

function save(name: string, type: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}

// Adds the chats of a file. A chat that is here with the same messages is left alone; one that differs is added beside it.
// Throws an Error with a message for the user.
export async function importChats(file: File): Promise<{ added: number; known: number }> {
  if (file.size > MAX_FILE_BYTES)
    throw new Error(`This file is larger than ${MAX_FILE_BYTES >> 20} MiB. Export fewer chats into one file.`)
  const found = imported(await file.text())
  const here = await everything()
  const chats = new Map(here.map((one) => [one.chat.id, one]))
  const messages = new Set(here.flatMap((one) => one.messages.map((message) => message.id)))
  const fresh: WholeChat[] = []
  for (const one of found) {
    const known = chats.get(one.chat.id)
    if (known !== undefined && holds(known, one)) continue
    const taken = known !== undefined || one.messages.some((message) => messages.has(message.id))
    fresh.push(taken ? renewed(one, newId) : one)
  }
  await add(fresh)
  return { added: fresh.length, known: found.length - fresh.length }
}

function holds(known: WholeChat, other: WholeChat): boolean {
  const texts = new Map(known.messages.map((message) => [message.id, message.text]))
  return other.messages.every((message) => texts.get(message.id) === message.text)
}
