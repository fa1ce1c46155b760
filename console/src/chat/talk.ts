// The conversations of this page, and what can be done with them: send, stop, try again, edit.
//
// Law: one answer at a time for each conversation; what has been written so far is never lost, however it ends.

import { batch, signal, type Signal } from '@preact/signals'
import { headers } from '../key'
import { targetText } from '../mesh/nodes'
import { api, lock, nodes } from '../state'
import { all, drop, keep, type Conversation, type Message } from './store'
import { Reader, type Answer } from './stream'

// What is drawn while an answer streams; more often is only work.
const DRAW_MS = 60
const KEEP_MS = 2000
const TITLE_LENGTH = 48
const API_AWAY =
  'The API of this node cannot be reached. On its machine, "mesh-llm status" says whether it runs; then try again.'

export const conversations = signal<Conversation[]>([])
export const keeps = signal(true) // whether this browser keeps them
export const opened = signal(false) // whether they have been read

// Answers under way, by conversation; the message grows in the conversation itself.
export interface Ongoing {
  stop: () => void
  news: Signal<string>
}
export const ongoing = signal<ReadonlyMap<string, Ongoing>>(new Map())

export async function open(): Promise<void> {
  if (opened.value) return
  try {
    conversations.value = await all()
  } catch {
    keeps.value = false
  }
  opened.value = true
}

export function find(id: string): Conversation | undefined {
  return conversations.value.find((one) => one.id === id)
}

// Settles once it is kept, or cannot be; it never fails.
async function save(conversation: Conversation): Promise<void> {
  if (!keeps.value) return
  try {
    await keep(conversation)
  } catch {
    keeps.value = false
  }
}

function put(conversation: Conversation, { top = false } = {}): void {
  const others = conversations.value.filter((one) => one.id !== conversation.id)
  conversations.value =
    top || others.length === conversations.value.length
      ? [conversation, ...others]
      : conversations.value.map((one) => (one.id === conversation.id ? conversation : one))
}

// Not `crypto.randomUUID`: browsers have that for pages of this machine or over TLS alone.
function ident(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

export function create(model: string): Conversation {
  return { id: ident(), title: '', model, system: '', changed: Date.now(), messages: [] }
}

export function change(conversation: Conversation, changes: Partial<Conversation>): Conversation {
  const changed = { ...(find(conversation.id) ?? conversation), ...changes }
  put(changed)
  if (changed.messages.length > 0) void save(changed)
  return changed
}

export function remove(id: string): void {
  ongoing.value.get(id)?.stop()
  conversations.value = conversations.value.filter((one) => one.id !== id)
  if (keeps.value)
    drop(id).catch(() => {
      keeps.value = false
    })
}

// Says `text` in a conversation and begins the answer. Returns the conversation as it is now.
export function say(conversation: Conversation, text: string, images: readonly string[]): Conversation {
  const message: Message = { id: ident(), role: 'user', text }
  if (images.length > 0) message.images = [...images]
  return answer({ ...conversation, messages: [...conversation.messages, message] })
}

// The answer behind message `id` once more; what came after it is gone.
export function again(conversation: Conversation, id: string): void {
  const place = conversation.messages.findIndex((message) => message.id === id)
  if (place >= 0) answer({ ...conversation, messages: conversation.messages.slice(0, place) })
}

// Message `id` is to say `text` instead, and what follows it is answered anew.
export function edit(conversation: Conversation, id: string, text: string): void {
  const place = conversation.messages.findIndex((message) => message.id === id)
  const message = conversation.messages[place]
  if (message === undefined) return
  answer({ ...conversation, messages: [...conversation.messages.slice(0, place), { ...message, text }] })
}

function answer(asked: Conversation): Conversation {
  ongoing.value.get(asked.id)?.stop()
  const message: Message = { id: ident(), role: 'assistant', text: '', model: asked.model }
  const first = asked.messages.find((one) => one.role === 'user')?.text.trim() ?? ''
  const title = asked.title || shortened(first) || 'An image'
  const conversation = { ...asked, title, changed: Date.now(), messages: [...asked.messages, message] }
  batch(() => put(conversation, { top: true }))
  void save(conversation)
  const stopper = new AbortController()
  const news = signal('')
  setOngoing(asked.id, { stop: () => stopper.abort(), news })
  void stream(conversation, message, stopper.signal, news).finally(() => {
    if (ongoing.value.get(asked.id)?.news === news) setOngoing(asked.id, null)
  })
  return conversation
}

function setOngoing(id: string, one: Ongoing | null): void {
  const changed = new Map(ongoing.value)
  if (one === null) changed.delete(id)
  else changed.set(id, one)
  ongoing.value = changed
}

function shortened(text: string): string {
  const line = text.split('\n', 1)[0] ?? ''
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line
}

// One answer, from the question to its end, written into the conversation as it comes.
async function stream(
  conversation: Conversation,
  message: Message,
  stopped: AbortSignal,
  news: Signal<string>,
): Promise<void> {
  const reader = new Reader()
  const times = new Times()
  let drawn = 0
  let kept = performance.now()
  const write = (end: Partial<Message>): Conversation | null => {
    const now = find(conversation.id)
    if (now === undefined || !now.messages.some((one) => one.id === message.id)) return null // it was taken away
    const grown = { ...message, ...told(reader.answer, times), ...end }
    const changed = { ...now, messages: now.messages.map((one) => (one.id === message.id ? grown : one)) }
    put(changed)
    return changed
  }
  let end: Partial<Message> = {}
  try {
    const { body, host } = await ask(conversation, stopped)
    reader.answer.host = host
    for (;;) {
      const { done, value } = await body.read()
      if (done) break
      reader.feed(value)
      times.saw(reader.answer)
      const now = performance.now()
      if (now - drawn >= DRAW_MS) {
        drawn = now
        batch(() => {
          news.value = reader.answer.news
          write({})
        })
      }
      if (now - kept >= KEEP_MS) {
        kept = now
        const changed = write({})
        if (changed !== null) void save(changed)
      }
    }
    reader.end()
    if (reader.answer.error !== null) end = { ended: 'error', error: reader.answer.error }
    else if (reader.answer.finish === 'length') end = { ended: 'length' }
  } catch (error) {
    reader.end()
    end = stopped.aborted ? { ended: 'stopped' } : { ended: 'error', error: wordsOf(error) }
  }
  const changed = write(end)
  // An answer that is there is there after a reload, too.
  if (changed !== null) await save(changed)
}

// Speed as seen from here, for servers that do not tell; and how long things took.
class Times {
  private readonly began = performance.now()
  private first: number | null = null
  private firstText: number | null = null
  private pieces = 0
  private last = 0

  saw(answer: Answer): void {
    if (answer.text === '' && answer.thinking === '') return
    this.last = performance.now()
    this.first ??= this.last
    if (answer.text !== '') this.firstText ??= this.last
    this.pieces += 1
  }

  get firstSeconds(): number | null {
    return this.first === null ? null : (this.first - this.began) / 1000
  }

  get thinkingSeconds(): number | null {
    return this.first === null ? null : ((this.firstText ?? this.last) - this.first) / 1000
  }

  speed(tokens: number): number | null {
    const seconds = this.first === null ? 0 : (this.last - this.first) / 1000
    return seconds > 0.2 && tokens > 1 ? (tokens - 1) / seconds : null
  }
}

function told(answer: Answer, times: Times): Partial<Message> {
  const found: Partial<Message> = { text: answer.text }
  if (answer.thinking !== '') {
    found.thinking = answer.thinking
    if (times.thinkingSeconds !== null) found.thinkingSeconds = times.thinkingSeconds
  }
  if (answer.host !== null) found.host = hostName(answer.host)
  if (answer.tokens !== null) found.tokens = answer.tokens
  const speed = answer.speed ?? (answer.tokens === null ? null : times.speed(answer.tokens))
  if (speed !== null) found.speed = speed
  if (times.firstSeconds !== null) found.firstSeconds = times.firstSeconds
  return found
}

// "peer 0123456789" by its name, as it is known now.
export function hostName(host: string): string {
  return targetText(host, nodes.value)
}

interface Body {
  body: ReadableStreamDefaultReader<string>
  host: string | null
}

async function ask(conversation: Conversation, stopped: AbortSignal): Promise<Body> {
  if (api.value.includes('//['))
    throw new Error(
      'Browsers let no page call an IPv6 address. Open this one by the node’s IPv4 address, or by a name.',
    )
  const answer = await fetch(`${api.value}/chat/completions`, {
    method: 'POST',
    headers: { ...headers(), 'content-type': 'application/json' },
    body: JSON.stringify({
      model: conversation.model,
      stream: true,
      stream_options: { include_usage: true },
      messages: messagesOf(conversation),
    }),
    signal: stopped,
    credentials: 'omit',
  })
  if (answer.status === 401) lock()
  if (!answer.ok || answer.body === null) throw new Error(await problemOf(answer))
  const body = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  return { body, host: answer.headers.get('x-mesh-llm-host') }
}

// What is sent: everything said so far, without the answer that is to come, or answers of which nothing came.
export function messagesOf(conversation: Conversation): unknown[] {
  const found: unknown[] = conversation.system.trim() === '' ? [] : [{ role: 'system', content: conversation.system }]
  for (const message of conversation.messages) {
    if (message.role === 'assistant') {
      if (message.text !== '') found.push({ role: 'assistant', content: message.text })
    } else if (message.images === undefined) {
      found.push({ role: 'user', content: message.text })
    } else {
      const images = message.images.map((url) => ({ type: 'image_url', image_url: { url } }))
      const text = message.text === '' ? [] : [{ type: 'text', text: message.text }]
      found.push({ role: 'user', content: [...images, ...text] })
    }
  }
  return found
}

async function problemOf(answer: Response): Promise<string> {
  try {
    const body = (await answer.json()) as { error?: { message?: unknown } }
    if (typeof body.error?.message === 'string') return body.error.message
  } catch {
    // Whatever it was, it was no error of ours.
  }
  return `The API answered with status ${answer.status}.`
}

function wordsOf(error: unknown): string {
  if (error instanceof TypeError) return API_AWAY
  return error instanceof Error ? error.message : String(error)
}
