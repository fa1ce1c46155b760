// Stores conversations in this browser (IndexedDB). If the browser cannot store them, they last as long as the page.

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
    request.onerror = () => reject(request.error ?? new Error('IndexedDB is not available'))
  })
  return opened
}

async function run<T>(mode: IDBTransactionMode, action: (objects: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const transaction = (await database()).transaction(STORE, mode)
  const request = action(transaction.objectStore(STORE))
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result)
    transaction.onerror = () => reject(transaction.error ?? new Error('IndexedDB did not store the conversation'))
    transaction.onabort = transaction.onerror
  })
}

// All conversations, the newest first.
export async function loadAll(): Promise<Conversation[]> {
  const found = await run<Conversation[]>('readonly', (objects) => objects.getAll() as IDBRequest<Conversation[]>)
  return found.toSorted((one, other) => other.changed - one.changed)
}

export async function store(conversation: Conversation): Promise<void> {
  await run('readwrite', (objects) => objects.put(conversation))
}

export async function erase(id: string): Promise<void> {
  await run('readwrite', (objects) => objects.delete(id))
}
