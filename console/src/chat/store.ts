// Stores chats in this browser (IndexedDB). All tabs share the database.
//
// Invariants: a message is written by the tab that made it alone, and never changes its parent; a chat's other fields are
// read, changed and written in one transaction. So no tab can undo what another one has stored.

import { signal } from '@preact/signals'
import { validParameters, type ChatParameters } from './parameters'

export interface Message {
  id: string
  chat: string
  parent: string | null
  role: 'user' | 'assistant'
  made: number // milliseconds since the epoch
  text: string
  images?: string[] // as data: addresses
  thinking?: string
  thinkingSeconds?: number
  model?: string
  host?: string
  speed?: number
  tokens?: number
  firstSeconds?: number
  parameters?: ChatParameters // those of the request
  prompted?: boolean // the request had a system prompt
  ended?: 'stopped' | 'length' | 'error'
  error?: string
  writing?: number // when the tab that receives the answer last stored it; absent: the answer has ended
}

export interface Chat {
  id: string
  title: string
  model: string
  system: string
  parameters: ChatParameters
  changed: number // milliseconds since the epoch
  leaf: string | null // the last message of the shown path
  deleted?: number // when it was deleted; it can be restored until it is purged
}

// What a transaction can do.
export interface Tables {
  chat(id: string): Promise<Chat | undefined>
  chats(): Promise<Chat[]>
  message(id: string): Promise<Message | undefined>
  messagesOf(chat: string): Promise<Message[]>
  putChat(chat: Chat): void
  putMessage(message: Message): void
  drop(chat: string): Promise<void>
  // The chats with a message that `test` accepts.
  search(test: (message: Message) => boolean, stopped: AbortSignal): Promise<Set<string>>
}

const [DATABASE, CHATS, MESSAGES] = ['mesh-llm', 'chats', 'messages']
const VERSION = 2
// Version 1 had one object for each chat, with all messages in it.
const OLD_CHATS = 'conversations'

// Another tab has the database open in an older version of this page.
export const blocked = signal(false)

let opened: Promise<IDBDatabase> | null = null

function database(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, VERSION)
    request.onupgradeneeded = () => upgrade(request.result, request.transaction)
    request.onblocked = () => {
      blocked.value = true
    }
    request.onsuccess = () => {
      blocked.value = false
      const found = request.result
      // A newer version of this page needs the database: the next use here opens it again, or fails.
      found.onversionchange = () => {
        found.close()
        opened = null
      }
      found.onclose = () => {
        opened = null
      }
      resolve(found)
    }
    request.onerror = () => {
      opened = null
      reject(request.error ?? new Error('IndexedDB is not available'))
    }
  })
  return opened
}

function upgrade(made: IDBDatabase, transaction: IDBTransaction | null): void {
  made.createObjectStore(CHATS, { keyPath: 'id' })
  made.createObjectStore(MESSAGES, { keyPath: 'id' }).createIndex('chat', 'chat')
  if (transaction === null || !made.objectStoreNames.contains(OLD_CHATS)) return
  const old = transaction.objectStore(OLD_CHATS).getAll() as IDBRequest<OldChat[]>
  old.onsuccess = () => {
    for (const one of old.result) {
      const { chat, messages } = fromVersion1(one)
      transaction.objectStore(CHATS).put(chat)
      for (const message of messages) transaction.objectStore(MESSAGES).put(message)
    }
    made.deleteObjectStore(OLD_CHATS)
  }
}

export interface OldChat {
  id: string
  title: string
  model: string
  system: string
  changed: number
  messages: Omit<Message, 'chat' | 'parent' | 'made'>[]
}

// A chat of version 1, whose messages were a list. Their times are not known: they keep their order.
export function fromVersion1(old: OldChat): { chat: Chat; messages: Message[] } {
  const first = old.changed - old.messages.length
  const messages = old.messages.map((message, index): Message => {
    return { ...message, chat: old.id, parent: old.messages[index - 1]?.id ?? null, made: first + index }
  })
  const { id, title, model, system, changed } = old
  return { chat: { id, title, model, system, changed, parameters: {}, leaf: messages.at(-1)?.id ?? null }, messages }
}

function answered<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error ?? new Error('IndexedDB failed'))
  })
}

class DatabaseTables implements Tables {
  private readonly allChats: IDBObjectStore
  private readonly allMessages: IDBObjectStore

  constructor(transaction: IDBTransaction) {
    this.allChats = transaction.objectStore(CHATS)
    this.allMessages = transaction.objectStore(MESSAGES)
  }

  chat(id: string): Promise<Chat | undefined> {
    return answered(this.allChats.get(id) as IDBRequest<Chat | undefined>)
  }

  chats(): Promise<Chat[]> {
    return answered(this.allChats.getAll() as IDBRequest<Chat[]>)
  }

  message(id: string): Promise<Message | undefined> {
    return answered(this.allMessages.get(id) as IDBRequest<Message | undefined>)
  }

  messagesOf(chat: string): Promise<Message[]> {
    return answered(this.allMessages.index('chat').getAll(chat) as IDBRequest<Message[]>)
  }

  putChat(chat: Chat): void {
    this.allChats.put(chat)
  }

  putMessage(message: Message): void {
    this.allMessages.put(message)
  }

  async drop(chat: string): Promise<void> {
    this.allChats.delete(chat)
    const keys = await answered(this.allMessages.index('chat').getAllKeys(chat))
    for (const key of keys) this.allMessages.delete(key)
  }

  search(test: (message: Message) => boolean, stopped: AbortSignal): Promise<Set<string>> {
    const found = new Set<string>()
    return new Promise((resolve, reject) => {
      const request = this.allMessages.openCursor()
      request.onerror = () => reject(request.error ?? new Error('IndexedDB failed'))
      request.onsuccess = () => {
        const cursor = request.result
        if (cursor === null || stopped.aborted) {
          resolve(found)
          return
        }
        const message = cursor.value as Message
        if (!found.has(message.chat) && test(message)) found.add(message.chat)
        cursor.continue()
      }
    })
  }
}

// Runs `body` in one transaction of both tables. Inside it, `body` must wait for nothing but the tables.
export async function transact<T>(mode: IDBTransactionMode, body: (tables: Tables) => Promise<T>): Promise<T> {
  const transaction = (await database()).transaction([CHATS, MESSAGES], mode)
  const completed = new Promise<void>((resolve, reject) => {
    const fail = (): void => reject(transaction.error ?? new Error('IndexedDB did not store the chat'))
    transaction.oncomplete = () => resolve()
    transaction.onerror = fail
    transaction.onabort = fail
  })
  completed.catch(() => undefined) // reported below, unless `body` fails first
  const result = await body(new DatabaseTables(transaction))
  await completed
  return result
}

// A stored chat, whatever version of the page has stored it.
export function completeChat(chat: Chat): Chat {
  return { ...chat, system: chat.system ?? '', parameters: validParameters(chat.parameters), leaf: chat.leaf ?? null }
}
