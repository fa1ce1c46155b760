// Requests an answer for a chat and reads its stream.

import type { Signal } from '@preact/signals'
import { headers, takeOwnKey } from '../key'
import { targetText } from '../mesh/nodes'
import { access, api, lock, nodes, status } from '../state'
import { requestFields } from './parameters'
import type { Chat, Message } from './store'
import { AnswerReader, type Answer } from './stream'

// What an answer needs of its chat, when it was asked for.
export type Asked = Pick<Chat, 'model' | 'system' | 'parameters'>

// Receives an answer and gives the message's fields to `write` as they grow. Returns those of its end.
export async function receiveAnswer(
  asked: Asked,
  path: readonly Message[],
  stopped: AbortSignal,
  progress: Signal<string>,
  write: (fields: Partial<Message>) => void,
): Promise<Partial<Message>> {
  const reader = new AnswerReader()
  const times = new AnswerTimes()
  let end: Partial<Message> = {}
  try {
    const { body, host } = await request(asked, path, stopped)
    reader.answer.host = host
    for (;;) {
      const { done, value } = await body.read()
      if (done) break
      reader.feed(value)
      times.record(reader.answer)
      progress.value = reader.answer.progress
      write(fieldsOf(reader.answer, times))
    }
    reader.end()
    if (reader.answer.error !== null) end = { ended: 'error', error: errorText(reader.answer.error) }
    else if (reader.answer.finish === 'length') end = { ended: 'length' }
  } catch (error) {
    reader.end()
    end = stopped.aborted ? { ended: 'stopped' } : { ended: 'error', error: failureText(error) }
  }
  return { ...fieldsOf(reader.answer, times), ...end }
}

// Times of an answer, and its speed if the server does not report it.
class AnswerTimes {
  private readonly began = performance.now()
  private first: number | null = null
  private firstText: number | null = null
  private last = 0

  record(answer: Answer): void {
    if (answer.text === '' && answer.thinking === '') return
    this.last = performance.now()
    this.first ??= this.last
    if (answer.text !== '') this.firstText ??= this.last
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

function fieldsOf(answer: Answer, times: AnswerTimes): Partial<Message> {
  const found: Partial<Message> = { text: answer.text }
  if (answer.thinking !== '') {
    found.thinking = answer.thinking
    if (times.thinkingSeconds !== null) found.thinkingSeconds = times.thinkingSeconds
  }
  // The name of the node behind a target such as "peer 0123456789".
  if (answer.host !== null) found.host = targetText(answer.host, nodes.value)
  if (answer.tokens !== null) found.tokens = answer.tokens
  const speed = answer.speed ?? (answer.tokens === null ? null : times.speed(answer.tokens))
  if (speed !== null) found.speed = speed
  if (times.firstSeconds !== null) found.firstSeconds = times.firstSeconds
  return found
}

interface AnswerStream {
  body: ReadableStreamDefaultReader<string>
  host: string | null
}

async function request(asked: Asked, path: readonly Message[], stopped: AbortSignal): Promise<AnswerStream> {
  if (api.value.includes('//['))
    throw new Error(
      'Browsers do not allow pages to call an IPv6 address. Open this page with the node’s IPv4 address or host name.',
    )
  let answer = await post(asked, path, stopped)
  // A node with --require-key asks this machine for the key, too. The owner's page may have it.
  if (answer.status === 401 && access.value === 'owner' && (await takeOwnKey()))
    answer = await post(asked, path, stopped)
  if (answer.status === 401) lock()
  if (!answer.ok || answer.body === null) throw new Error(await responseError(answer))
  const body = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  return { body, host: answer.headers.get('x-mesh-llm-host') }
}

function post(asked: Asked, path: readonly Message[], stopped: AbortSignal): Promise<Response> {
  return fetch(`${api.value}/chat/completions`, {
    method: 'POST',
    headers: { ...headers(), 'content-type': 'application/json' },
    body: JSON.stringify({
      model: asked.model,
      stream: true,
      stream_options: { include_usage: true },
      ...requestFields(asked.parameters),
      messages: messagesOf(asked.system, path),
    }),
    signal: stopped,
    credentials: 'omit',
  })
}

// The messages to send: all of the path except empty answers.
export function messagesOf(system: string, path: readonly Message[]): unknown[] {
  const found: unknown[] = system.trim() === '' ? [] : [{ role: 'system', content: system }]
  for (const message of path) {
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
    if (typeof body.error?.message === 'string') return errorText(body.error.message)
  } catch {
    // Not a JSON error.
  }
  return `The API answered with status ${answer.status}.`
}

// The engine's own words about a chat that is too long, which clients recognise; people need others.
const TOO_LONG = /\((\d+) tokens\) exceeds the available context size \((\d+) tokens\)/

export function errorText(message: string): string {
  const [, needed, available] = TOO_LONG.exec(message) ?? []
  if (needed === undefined || available === undefined) return message
  const [asked, room] = [Number(needed).toLocaleString('en'), Number(available).toLocaleString('en')]
  return `This chat is too long for the model (${asked} of ${room} tokens). Start a new chat, or edit an earlier message.`
}

function failureText(error: unknown): string {
  if (error instanceof TypeError)
    return `${status.value?.name ?? 'The node'} does not answer. Check that it runs: "mesh-llm status" on its machine says so. Then try again.`
  return error instanceof Error ? error.message : String(error)
}
