// Conversations, kept in this browser and nowhere else (IndexedDB).
//
// Law: a browser that keeps nothing (a private window, a full disk) is no reason not to talk: then they last as long
// as the page.

export interface Message {
  id: string
  role: 'user' | 'assistant'
  text: string
  images?: string[] // as data: addresses
  thinking?: string
  thinkingSeconds?: number
  model?: string
  host?: string
  speed?: number
  tokens?: number
  firstSeconds?: number
  ended?: 'stopped' | 'length' | 'error'
  error?: string
}

export interface Conversation {
  id: string
  title: string
  model: string
  system: string
  changed: number // milliseconds since the epoch
  messages: Message[]
}

const [DATABASE, STORE] = ['mesh-llm', 'conversations']

let opened: Promise<IDBDatabase> | null = null

function database(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1)
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' })
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error ?? new Error('the browser keeps nothing'))
  })
  return opened
}

async function run<T>(mode: IDBTransactionMode, what: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const transaction = (await database()).transaction(STORE, mode)
  const request = what(transaction.objectStore(STORE))
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result)
    transaction.onerror = () => reject(transaction.error ?? new Error('the browser did not keep it'))
    transaction.onabort = transaction.onerror
  })
}

// All of them, the newest first.
export async function all(): Promise<Conversation[]> {
  const found = await run<Conversation[]>('readonly', (store) => store.getAll() as IDBRequest<Conversation[]>)
  return found.toSorted((one, other) => other.changed - one.changed)
}

export async function keep(conversation: Conversation): Promise<void> {
  await run('readwrite', (store) => store.put(conversation))
}

export async function drop(id: string): Promise<void> {
  await run('readwrite', (store) => store.delete(id))
}
