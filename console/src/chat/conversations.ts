// The conversations of this page: send a message, stop, regenerate or edit. A conversation has one answer at a time, and
// keeps the received part of an answer that fails or is stopped.

import { batch, signal, type Signal } from '@preact/signals'
import { headers } from '../key'
import { targetText } from '../mesh/nodes'
import { api, lock, nodes } from '../state'
import { erase, loadAll, store, type Conversation, type Message } from './store'
import { AnswerReader, type Answer } from './stream'

// Intervals between two renderings and between two saves of a streaming answer.
const RENDER_MS = 60
const SAVE_MS = 2000
const TITLE_LENGTH = 48
const API_UNREACHABLE =
  'Cannot connect to the API of this node. Check with "mesh-llm status" on its machine that it is running, and retry.'

export const conversations = signal<Conversation[]>([])
export const storable = signal(true) // whether this browser stores conversations
export const loaded = signal(false)

// Streaming answers by conversation; the text is in the conversation's last message.
export interface ActiveAnswer {
  stop: () => void
  progress: Signal<string>
}
export const activeAnswers = signal<ReadonlyMap<string, ActiveAnswer>>(new Map())

export async function loadConversations(): Promise<void> {
  if (loaded.value) return
  try {
    conversations.value = await loadAll()
  } catch {
    storable.value = false
  }
  loaded.value = true
}

export function find(id: string): Conversation | undefined {
  return conversations.value.find((one) => one.id === id)
}

// Never rejects: `storable` says whether storing works.
async function save(conversation: Conversation): Promise<void> {
  if (!storable.value) return
  try {
    await store(conversation)
  } catch {
    storable.value = false
  }
}

function replaceConversation(conversation: Conversation, { top = false } = {}): void {
  const others = conversations.value.filter((one) => one.id !== conversation.id)
  conversations.value =
    top || others.length === conversations.value.length
      ? [conversation, ...others]
      : conversations.value.map((one) => (one.id === conversation.id ? conversation : one))
}

// `crypto.randomUUID` exists in secure contexts only.
function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

export function create(model: string): Conversation {
  return { id: newId(), title: '', model, system: '', changed: Date.now(), messages: [] }
}

export function change(conversation: Conversation, changes: Partial<Conversation>): Conversation {
  const changed = { ...(find(conversation.id) ?? conversation), ...changes }
  replaceConversation(changed)
  if (changed.messages.length > 0) void save(changed)
  return changed
}

export function remove(id: string): void {
  activeAnswers.value.get(id)?.stop()
  conversations.value = conversations.value.filter((one) => one.id !== id)
  if (storable.value)
    erase(id).catch(() => {
      storable.value = false
    })
}

// Sends a message and starts the answer. Returns the changed conversation.
export function send(conversation: Conversation, text: string, images: readonly string[]): Conversation {
  const message: Message = { id: newId(), role: 'user', text }
  if (images.length > 0) message.images = [...images]
  return startAnswer({ ...conversation, messages: [...conversation.messages, message] })
}

// Answers again in place of message `id`; later messages are removed.
export function regenerate(conversation: Conversation, id: string): void {
  const index = conversation.messages.findIndex((message) => message.id === id)
  if (index >= 0) startAnswer({ ...conversation, messages: conversation.messages.slice(0, index) })
}

// Replaces the text of message `id`, removes later messages and starts a new answer.
export function edit(conversation: Conversation, id: string, text: string): void {
  const index = conversation.messages.findIndex((message) => message.id === id)
  const message = conversation.messages[index]
  if (message === undefined) return
  startAnswer({ ...conversation, messages: [...conversation.messages.slice(0, index), { ...message, text }] })
}

function startAnswer(asked: Conversation): Conversation {
  activeAnswers.value.get(asked.id)?.stop()
  const message: Message = { id: newId(), role: 'assistant', text: '', model: asked.model }
  const first = asked.messages.find((one) => one.role === 'user')?.text.trim() ?? ''
  const title = asked.title || titleOf(first) || 'Image'
  const conversation = { ...asked, title, changed: Date.now(), messages: [...asked.messages, message] }
  batch(() => replaceConversation(conversation, { top: true }))
  void save(conversation)
  const controller = new AbortController()
  const progress = signal('')
  setActiveAnswer(asked.id, { stop: () => controller.abort(), progress })
  void streamAnswer(conversation, message, controller.signal, progress).finally(() => {
    if (activeAnswers.value.get(asked.id)?.progress === progress) setActiveAnswer(asked.id, null)
  })
  return conversation
}

function setActiveAnswer(id: string, one: ActiveAnswer | null): void {
  const changed = new Map(activeAnswers.value)
  if (one === null) changed.delete(id)
  else changed.set(id, one)
  activeAnswers.value = changed
}

function titleOf(text: string): string {
  const line = text.split('\n', 1)[0] ?? ''
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line
}

// Requests an answer and writes it into the conversation as it arrives.
async function streamAnswer(
  conversation: Conversation,
  message: Message,
  stopped: AbortSignal,
  progress: Signal<string>,
): Promise<void> {
  const reader = new AnswerReader()
  const times = new AnswerTimes()
  let renderedAt = 0
  let savedAt = performance.now()
  const write = (end: Partial<Message>): Conversation | null => {
    const now = find(conversation.id)
    if (now === undefined || !now.messages.some((one) => one.id === message.id)) return null // deleted meanwhile
    const grown = { ...message, ...answerFields(reader.answer, times), ...end }
    const changed = { ...now, messages: now.messages.map((one) => (one.id === message.id ? grown : one)) }
    replaceConversation(changed)
    return changed
  }
  let end: Partial<Message> = {}
  try {
    const { body, host } = await requestAnswer(conversation, stopped)
    reader.answer.host = host
    for (;;) {
      const { done, value } = await body.read()
      if (done) break
      reader.feed(value)
      times.record(reader.answer)
      const now = performance.now()
      if (now - renderedAt >= RENDER_MS) {
        renderedAt = now
        batch(() => {
          progress.value = reader.answer.progress
          write({})
        })
      }
      if (now - savedAt >= SAVE_MS) {
        savedAt = now
        const changed = write({})
        if (changed !== null) void save(changed)
      }
    }
    reader.end()
    if (reader.answer.error !== null) end = { ended: 'error', error: reader.answer.error }
    else if (reader.answer.finish === 'length') end = { ended: 'length' }
  } catch (error) {
    reader.end()
    end = stopped.aborted ? { ended: 'stopped' } : { ended: 'error', error: errorText(error) }
  }
  const changed = write(end)
  if (changed !== null) await save(changed)
}

// Times of an answer, and its speed if the server does not report it.
class AnswerTimes {
  private readonly began = performance.now()
  private first: number | null = null
  private firstText: number | null = null
  private pieces = 0
  private last = 0

  record(answer: Answer): void {
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

function answerFields(answer: Answer, times: AnswerTimes): Partial<Message> {
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

// The name of the node behind a target such as "peer 0123456789".
export function hostName(host: string): string {
  return targetText(host, nodes.value)
}

interface AnswerStream {
  body: ReadableStreamDefaultReader<string>
  host: string | null
}

async function requestAnswer(conversation: Conversation, stopped: AbortSignal): Promise<AnswerStream> {
  if (api.value.includes('//['))
    throw new Error(
      'Browsers do not allow pages to call an IPv6 address. Open this page with the node’s IPv4 address or host name.',
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
  if (!answer.ok || answer.body === null) throw new Error(await responseError(answer))
  const body = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  return { body, host: answer.headers.get('x-mesh-llm-host') }
}

// The messages to send: all of the conversation except empty answers.
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

async function responseError(answer: Response): Promise<string> {
  try {
    const body = (await answer.json()) as { error?: { message?: unknown } }
    if (typeof body.error?.message === 'string') return body.error.message
  } catch {
    // Not a JSON error.
  }
  return `The API answered with status ${answer.status}.`
}

function errorText(error: unknown): string {
  if (error instanceof TypeError) return API_UNREACHABLE
  return error instanceof Error ? error.message : String(error)
}
