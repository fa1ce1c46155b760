// The chats of this browser: send a message, stop, regenerate, edit; rename, delete, restore. All tabs show the same.
//
// A chat has one answer at a time on its shown path. An answer that fails or is stopped keeps what was received.

import { batch, computed, signal, type Signal } from '@preact/signals'
import { receiveAnswer } from './answer'
import { defaults } from './defaults'
import { completeChat, transact, type Chat, type Message, type Tables } from './store'
import { listen, tell, type TabMessage } from './tabs'
import { childrenOf, newestLeaf, pathTo, type Messages } from './tree'

// Intervals of a streaming answer: between two renderings, two messages to other tabs, and two saves.
const RENDER_MS = 60
const TELL_MS = 250
const SAVE_MS = 2000
const BEAT_MS = 5000
// A tab that tells nothing about its answer for so long has gone. Browsers slow down the timers of hidden tabs.
const ABANDONED_MS = 75_000
// How soon after this page's start the other tabs have told which answers they receive.
const HELLO_MS = 1500
// How long a deleted chat can be restored; one of a closed tab is purged at the next start after it.
export const RESTORE_MS = 20_000
const TITLE_LENGTH = 48

const all = signal<ReadonlyMap<string, Chat>>(new Map())
const threads = signal<ReadonlyMap<string, Thread>>(new Map())
interface Thread {
  messages: Messages
  loaded: boolean
}

// The chats, the newest first.
export const chats = computed(() =>
  [...all.value.values()]
    .filter((chat) => chat.deleted === undefined)
    .sort((one, other) => other.changed - one.changed || (one.id < other.id ? -1 : 1)),
)
export const storable = signal(true) // whether this browser stores chats
export const loaded = signal(false)
export const deleted = signal<Chat | null>(null) // the chat that was deleted last in this tab

// Answers that this tab receives, by message.
interface ActiveAnswer {
  stop: () => void
  progress: Signal<string>
  current: () => Message
}
const active = signal<ReadonlyMap<string, ActiveAnswer>>(new Map())
// The progress of answers that other tabs receive, by message.
const foreignProgress = signal<ReadonlyMap<string, Signal<string>>>(new Map())
// When another tab told last that it receives an answer, by message; `clock` makes readers look again.
const heard = new Map<string, number>()
const clock = signal(Date.now())
let startedAt = Infinity

// -- reading

export function find(id: string): Chat | undefined {
  const chat = all.value.get(id)
  return chat?.deleted === undefined ? chat : undefined
}

const NONE: Messages = new Map()

// The messages of a chat; null while they are loaded.
export function messagesIn(id: string): Messages | null {
  if (!all.value.has(id)) return NONE // not stored yet
  const thread = threads.value.get(id)
  return thread?.loaded === true ? thread.messages : null
}

// Whether an answer is being received, here or in another tab.
export function isWriting(message: Message | undefined): boolean {
  if (message?.writing === undefined) return false
  if (active.value.has(message.id)) return true
  const heardAt = heard.get(message.id)
  if (heardAt !== undefined) return clock.value - heardAt < ABANDONED_MS
  return clock.value - startedAt < HELLO_MS && clock.value - message.writing < ABANDONED_MS
}

// The gateway's progress of an answer that is being received.
export function progressOf(message: Message): Signal<string> {
  return active.value.get(message.id)?.progress ?? foreignProgress.value.get(message.id) ?? signal('')
}

// -- loading

export async function loadChats(): Promise<void> {
  if (loaded.value) return
  listen(receive)
  addEventListener('pagehide', () => active.value.forEach((one) => one.stop()))
  addEventListener('pageshow', (event) => {
    if (event.persisted) void readAgain() // this page was frozen and got no messages of other tabs
  })
  setInterval(() => {
    if (!document.hidden) clock.value = Date.now()
  }, 5000)
  setTimeout(() => (clock.value = Date.now()), HELLO_MS + 50)
  startedAt = clock.value = Date.now()
  tell({ kind: 'hello' })
  await readChats()
  loaded.value = true
  const now = Date.now()
  for (const chat of all.value.values())
    if (chat.deleted !== undefined && now - chat.deleted > 2 * RESTORE_MS) void purge(chat.id)
}

async function readChats(): Promise<void> {
  try {
    const found = await transact('readonly', (tables) => tables.chats())
    all.value = new Map(found.map((chat): [string, Chat] => [chat.id, completeChat(chat)]))
  } catch {
    storable.value = false
  }
}

export async function loadMessages(id: string): Promise<void> {
  if (!all.value.has(id) || threads.value.has(id)) return
  setThread(id, { messages: new Map(), loaded: false })
  await readMessages(id)
}

async function readMessages(id: string): Promise<void> {
  let found: Message[] = []
  try {
    if (storable.value) found = await transact('readonly', (tables) => tables.messagesOf(id))
  } catch {
    storable.value = false
  }
  const thread = threads.value.get(id)
  if (thread === undefined) return // purged meanwhile
  // What this tab or another one has told meanwhile is newer.
  const messages = new Map(found.map((one): [string, Message] => [one.id, one]))
  for (const one of thread.messages.values()) if (!thread.loaded || active.value.has(one.id)) messages.set(one.id, one)
  setThread(id, { messages, loaded: true })
}

// Reads what is open again, after much has changed or no messages of other tabs came.
async function readAgain(): Promise<void> {
  if (!storable.value) return
  await readChats()
  tell({ kind: 'hello' })
  await Promise.all([...threads.value.keys()].map(readMessages))
}

function owns(chat: string, message: string): boolean {
  return threads.value.get(chat)?.messages.has(message) ?? false
}

function setThread(id: string, thread: Thread): void {
  threads.value = new Map(threads.value).set(id, thread)
}

// -- what other tabs tell

function receive(told: TabMessage): void {
  switch (told.kind) {
    case 'chats':
      putChats(told.chats)
      for (const chat of told.chats) if (chat.deleted !== undefined) stopIn(chat.id)
      break
    case 'messages':
      clock.value = Date.now()
      for (const { id, writing } of told.messages) {
        if (writing === undefined) heard.delete(id)
        else heard.set(id, clock.value)
      }
      putMessages(told.messages.filter((message) => !active.value.has(message.id)))
      break
    case 'hello':
      if (active.value.size > 0)
        tell({ kind: 'messages', messages: [...active.value.values()].map((one) => one.current()) })
      break
    case 'progress':
      if (!foreignProgress.value.has(told.message))
        foreignProgress.value = new Map(foreignProgress.value).set(told.message, signal(''))
      foreignProgress.value.get(told.message)!.value = told.text
      break
    case 'purged':
      forget(told.chat)
      break
    case 'stop':
      active.value.get(told.message)?.stop()
      break
    case 'reload':
      void readAgain()
  }
}

function putChats(changed: readonly Chat[]): void {
  all.value = new Map([...all.value, ...changed.map((chat): [string, Chat] => [chat.id, chat])])
}

// Only opened chats have their messages in memory.
function putMessages(changed: readonly Message[]): void {
  const next = new Map(threads.value)
  for (const message of changed) {
    const thread = next.get(message.chat)
    if (thread !== undefined)
      next.set(message.chat, { ...thread, messages: new Map(thread.messages).set(message.id, message) })
  }
  threads.value = next
}

function forget(id: string): void {
  stopIn(id)
  batch(() => {
    const [left, leftThreads] = [new Map(all.value), new Map(threads.value)]
    left.delete(id)
    leftThreads.delete(id)
    all.value = left
    threads.value = leftThreads
    if (deleted.value?.id === id) deleted.value = null
  })
}

function stopIn(chat: string): void {
  for (const [message, one] of active.value) if (owns(chat, message)) one.stop()
}

// -- changing

// Runs a transaction; if this browser stores nothing, its reads come from memory and its writes are dropped.
async function inStore<T>(body: (tables: Tables) => Promise<T>): Promise<T> {
  if (storable.value) {
    try {
      return await transact('readwrite', body)
    } catch {
      storable.value = false
    }
  }
  return body(MEMORY)
}

const MEMORY: Tables = {
  chat: async (id) => all.value.get(id),
  chats: async () => [...all.value.values()],
  message: async (id) => [...threads.value.values()].map((thread) => thread.messages.get(id)).find(Boolean),
  messagesOf: async (chat) => [...(threads.value.get(chat)?.messages.values() ?? [])],
  putChat: () => undefined,
  putMessage: () => undefined,
  drop: async () => undefined,
  search: async (test) => {
    const found = [...threads.value.values()].flatMap((thread) => [...thread.messages.values()].filter(test))
    return new Set(found.map((message) => message.chat))
  },
}

// `crypto.randomUUID` exists in secure contexts only.
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

// A chat with this browser's defaults. It is stored with its first message.
export function create(model: string): Chat {
  const { system, parameters } = defaults.value
  return { id: newId(), title: '', model, system, parameters, changed: Date.now(), leaf: null }
}

// Changes fields of a stored chat; those of other tabs stay.
export async function change(id: string, changes: Partial<Omit<Chat, 'id'>>): Promise<void> {
  const here = all.value.get(id)
  if (here === undefined) return
  putChats([{ ...here, ...changes }])
  const stored = await inStore(async (tables) => {
    const now = await tables.chat(id)
    if (now === undefined) return null
    const changed = { ...completeChat(now), ...changes }
    tables.putChat(changed)
    return changed
  })
  if (stored !== null) tell({ kind: 'chats', chats: [stored] })
}

export function rename(id: string, title: string): void {
  const text = title.trim()
  if (text !== '') void change(id, { title: text.slice(0, 200) })
}

// Deletes a chat, so that it can be restored for a while.
export function remove(id: string): void {
  const chat = find(id)
  if (chat === undefined) return
  stopIn(id)
  if (deleted.value !== null) void purge(deleted.value.id)
  deleted.value = chat
  void change(id, { deleted: Date.now() })
  setTimeout(() => {
    if (all.value.get(id)?.deleted !== undefined) void purge(id)
  }, RESTORE_MS)
}

export async function restore(id: string): Promise<void> {
  const chat = all.value.get(id)
  deleted.value = null
  if (chat === undefined) return
  const { deleted: _, ...kept } = chat
  putChats([kept])
  await inStore(async (tables) => {
    if ((await tables.chat(id)) !== undefined) tables.putChat(kept)
  })
  tell({ kind: 'chats', chats: [kept] })
}

async function purge(id: string): Promise<void> {
  forget(id)
  await inStore(async (tables) => {
    // Another tab may have restored it.
    if ((await tables.chat(id))?.deleted !== undefined) await tables.drop(id)
  })
  tell({ kind: 'purged', chat: id })
}

// Shows the path through another version of a message.
export function choose(chat: Chat, message: Message): void {
  const messages = messagesIn(chat.id) ?? NONE
  void change(chat.id, { leaf: newestLeaf(childrenOf(messages), message.id) })
}

// Puts imported chats beside the others.
export async function add(imported: readonly { chat: Chat; messages: readonly Message[] }[]): Promise<void> {
  await inStore(async (tables) => {
    for (const { chat, messages } of imported) {
      tables.putChat(chat)
      for (const message of messages) tables.putMessage(message)
    }
  })
  if (storable.value) {
    await readAgain()
    tell({ kind: 'reload' })
    return
  }
  putChats(imported.map(({ chat }) => chat))
  for (const { chat, messages } of imported)
    setThread(chat.id, { messages: new Map(messages.map((one) => [one.id, one])), loaded: true })
}

// All stored chats with their messages, for an export.
export function everything(): Promise<{ chat: Chat; messages: Message[] }[]> {
  return inStore(async (tables) => {
    const found: { chat: Chat; messages: Message[] }[] = []
    for (const stored of await tables.chats()) {
      if (stored.deleted !== undefined) continue
      found.push({ chat: completeChat(stored), messages: await tables.messagesOf(stored.id) })
    }
    return found.sort((one, other) => other.chat.changed - one.chat.changed)
  })
}

// The chats with `text` in their title or a message, in any case; null if the search was stopped.
export async function search(text: string, stopped: AbortSignal): Promise<ReadonlySet<string> | null> {
  const wanted = text.trim().toLowerCase()
  const titled = chats.value.filter((chat) => chat.title.toLowerCase().includes(wanted)).map((chat) => chat.id)
  const test = (message: Message): boolean => message.text.toLowerCase().includes(wanted)
  const found = storable.value
    ? await transact('readonly', (tables) => tables.search(test, stopped)).catch(() => new Set<string>())
    : await MEMORY.search(test, stopped)
  return stopped.aborted ? null : new Set([...titled, ...found])
}

// -- asking

// Sends a message behind the shown path and starts the answer. False: another tab receives an answer in this chat.
export function send(chat: Chat, text: string, images: readonly string[]): Promise<boolean> {
  const question: Partial<Message> & { text: string } = { text }
  if (images.length > 0) question.images = [...images]
  return ask(chat, chat.leaf, question, true)
}

// Answers a question again, as another version of `message`.
export function regenerate(chat: Chat, message: Message): void {
  void ask(chat, message.parent, null, false)
}

// Sends another version of the question `message`.
export function edit(chat: Chat, message: Message, text: string): void {
  const { images } = message
  void ask(chat, message.parent, images === undefined ? { text } : { text, images }, false)
}

async function ask(
  shown: Chat,
  below: string | null,
  question: (Partial<Message> & { text: string }) | null,
  append: boolean,
): Promise<boolean> {
  const leaf = messagesIn(shown.id)?.get(shown.leaf ?? '')
  if (leaf !== undefined && !append) active.value.get(leaf.id)?.stop()
  const started = await inStore((tables) => begin(tables, shown, below, question, append))
  if (started === null) return false
  const { chat, messages, answer } = started
  batch(() => {
    putChats([chat])
    if (!threads.value.has(chat.id)) setThread(chat.id, { messages: new Map(), loaded: true })
    putMessages(messages)
  })
  tell({ kind: 'chats', chats: [chat] })
  tell({ kind: 'messages', messages })
  const path = pathTo(messagesIn(chat.id) ?? NONE, answer.parent)
  void receiveInto(chat, path, answer)
  return true
}

interface Started {
  chat: Chat
  messages: Message[] // the new ones, and those of other tabs before them
  answer: Message
}

// Stores the question and an empty answer. null: another tab receives an answer in this chat.
async function begin(
  tables: Tables,
  shown: Chat,
  below: string | null,
  question: (Partial<Message> & { text: string }) | null,
  append: boolean,
): Promise<Started | null> {
  const known = await tables.chat(shown.id)
  const stored = known === undefined ? shown : completeChat(known)
  const messages: Message[] = []
  let parent = below
  if (append) {
    // Another tab may have added messages that are not shown here yet: the question follows them.
    const between = await messagesBetween(tables, stored.leaf, below)
    if (between !== null) {
      messages.push(...between)
      parent = stored.leaf
    }
    const last = parent === null ? undefined : await tables.message(parent)
    clock.value = Date.now()
    if (last !== undefined && isWriting(last)) return null
  }
  const now = Date.now()
  if (question !== null) {
    messages.push({ ...question, id: newId(), chat: shown.id, parent, role: 'user', made: now })
    parent = messages.at(-1)!.id
  }
  const { model, system, parameters } = shown
  const answer: Message = {
    ...{ id: newId(), chat: shown.id, parent, role: 'assistant', made: now + 1, text: '', model, writing: now },
    ...(Object.keys(parameters).length === 0 ? {} : { parameters }),
    ...(system.trim() === '' ? {} : { prompted: true }),
  }
  messages.push(answer)
  const title = stored.title || titleOf(question?.text ?? '') || 'Image'
  const { deleted: _, ...kept } = stored
  const chat = { ...kept, model, system, parameters, title, changed: now, leaf: answer.id }
  tables.putChat(chat)
  for (const message of messages) tables.putMessage(message)
  return { chat, messages, answer }
}

// The messages from below `ancestor` to `leaf`; null if `leaf` is not below it.
async function messagesBetween(
  tables: Tables,
  leaf: string | null,
  ancestor: string | null,
): Promise<Message[] | null> {
  const found: Message[] = []
  for (let id = leaf; id !== ancestor;) {
    const message = id === null ? undefined : await tables.message(id)
    if (message === undefined) return null
    found.push(message)
    id = message.parent
  }
  return found.reverse()
}

function titleOf(text: string): string {
  const line = text.trim().split('\n', 1)[0] ?? ''
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line
}

// Stops an answer, wherever it is received.
export function stop(message: Message): void {
  const here = active.value.get(message.id)
  if (here !== undefined) here.stop()
  else tell({ kind: 'stop', message: message.id })
}

async function receiveInto(asked: Chat, path: readonly Message[], answer: Message): Promise<void> {
  const controller = new AbortController()
  const progress = signal('')
  let current = answer
  const one = { stop: () => controller.abort(), progress, current: () => current }
  active.value = new Map(active.value).set(answer.id, one)
  let [renderedAt, toldAt, savedAt] = [0, 0, performance.now()]
  let toldProgress = ''
  const write = (fields: Partial<Message>): void => {
    current = { ...answer, ...fields, writing: Date.now() }
    const now = performance.now()
    if (now - renderedAt >= RENDER_MS) {
      renderedAt = now
      putMessages([current])
    }
    if (now - toldAt >= TELL_MS) {
      toldAt = now
      tell({ kind: 'messages', messages: [current] })
      if (progress.value !== toldProgress) tell({ kind: 'progress', message: answer.id, text: progress.value })
      toldProgress = progress.value
    }
    if (now - savedAt >= SAVE_MS) {
      savedAt = now
      void save(current)
    }
  }
  // A sign of life while nothing arrives.
  const beat = setInterval(() => {
    current = { ...current, writing: Date.now() }
    void save(current)
    tell({ kind: 'messages', messages: [current] })
  }, BEAT_MS)
  const fields = await receiveAnswer(asked, path, controller.signal, progress, write)
  clearInterval(beat)
  const { writing: _, ...ended } = { ...answer, ...fields }
  batch(() => {
    putMessages([ended])
    const left = new Map(active.value)
    left.delete(answer.id)
    active.value = left
  })
  tell({ kind: 'messages', messages: [ended] })
  await save(ended)
}

// Stores a message, unless its chat has been purged.
async function save(message: Message): Promise<void> {
  await inStore(async (tables) => {
    if ((await tables.chat(message.chat)) !== undefined) tables.putMessage(message)
  })
}
