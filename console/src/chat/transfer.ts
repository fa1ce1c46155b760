// Export and import of chats: the format of the file, and the check of a file that is imported. Pure.
//
// Invariants: a file is untrusted. Its size, depth and every field are bounded; unknown fields are left out; texts stay
// texts. A file with an invalid part is refused as a whole, with the place of the first problem.

import { parameterTexts, validParameters } from './parameters'
import type { Chat, Message } from './store'
import { pathTo, type Messages } from './tree'

const FORMAT = 'mesh-llm chats'
const FORMAT_VERSION = 1
export const MAX_FILE_BYTES = 128 << 20
// Deeper than any file of ours: file, chats, chat, messages, message, parameters or images.
const MAX_DEPTH = 16
const MAX_CHATS = 10_000
const MAX_MESSAGES = 100_000 // in all chats
const MAX_TEXT = 4_000_000
const MAX_LINE = 1000 // names and errors
const MAX_IMAGES = 8
const MAX_IMAGE = 16 << 20
const IMAGE = /^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}$/
const ID = /^[\w-]{1,64}$/

export interface WholeChat {
  chat: Chat
  messages: Message[]
}

// The text of an export file. Answers that are still being received are saved as far as they have come.
export function exported(chats: readonly WholeChat[], now: Date): string {
  const list = chats.map(({ chat, messages }) => {
    const { deleted: _, ...kept } = chat
    return { ...kept, messages: messages.map(({ chat: _chat, writing: _writing, ...message }) => message) }
  })
  return JSON.stringify({ format: FORMAT, version: FORMAT_VERSION, exported: now.toISOString(), chats: list }, null, 1)
}

// The chats of an export file. Throws an Error with a message for the user.
export function imported(text: string): WholeChat[] {
  if (depthOf(text, MAX_DEPTH) > MAX_DEPTH)
    throw new Error('This file is not an export of chats: it is nested too deeply.')
  let file: unknown
  try {
    file = JSON.parse(text)
  } catch {
    throw new Error('This file is not an export of chats: it is not valid JSON.')
  }
  if (!isObject(file) || file['format'] !== FORMAT || !Array.isArray(file['chats']))
    throw new Error('This file is not an export of chats. Choose a JSON file that this page has exported.')
  if (file['version'] !== FORMAT_VERSION)
    throw new Error('This file was exported by a newer version of mesh-llm. Update this node to import it.')
  const list = file['chats']
  if (list.length > MAX_CHATS) throw new Error(`This file has more than ${MAX_CHATS} chats. Import a smaller one.`)
  const seen = new Set<string>()
  let left = MAX_MESSAGES
  return list.map((one: unknown, index) => {
    const place = `Chat ${index + 1} of the file`
    const whole = wholeChat(one, place)
    left -= whole.messages.length
    if (left < 0) throw new Error(`This file has more than ${MAX_MESSAGES} messages. Import a smaller one.`)
    for (const id of [whole.chat.id, ...whole.messages.map((message) => message.id)]) {
      if (seen.has(id)) throw new Error(`${place} has an id that occurs twice: the file is damaged.`)
      seen.add(id)
    }
    return whole
  })
}

// How deeply the JSON text is nested; stops counting behind `most`.
export function depthOf(text: string, most: number): number {
  let [depth, deepest, quoted] = [0, 0, false]
  for (let at = 0; at < text.length && deepest <= most; at += 1) {
    const letter = text.charCodeAt(at)
    if (quoted) {
      if (letter === 0x5c) at += 1
      else if (letter === 0x22) quoted = false
    } else if (letter === 0x22) {
      quoted = true
    } else if (letter === 0x7b || letter === 0x5b) {
      depth += 1
      if (depth > deepest) deepest = depth
    } else if (letter === 0x7d || letter === 0x5d) {
      depth -= 1
    }
  }
  return deepest
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function wholeChat(value: unknown, place: string): WholeChat {
  if (!isObject(value) || !Array.isArray(value['messages'])) throw new Error(`${place} is not a chat.`)
  const id = idOf(value['id'], place)
  const messages = value['messages'].map((one: unknown, index) => messageOf(one, id, `${place}, message ${index + 1},`))
  const known = new Map(messages.map((message) => [message.id, message]))
  checkTree(known, place)
  const leaf = value['leaf']
  if (messages.length === 0 || typeof leaf !== 'string' || !known.has(leaf))
    throw new Error(`${place} has no last message: the file is damaged.`)
  const chat: Chat = {
    id,
    title: text(value['title'], MAX_LINE, `${place}: title`) || 'Imported chat',
    model: text(value['model'] ?? '', MAX_LINE, `${place}: model`),
    system: text(value['system'] ?? '', MAX_TEXT, `${place}: system prompt`),
    parameters: validParameters(value['parameters']),
    changed: time(value['changed'], `${place}: time`),
    leaf,
  }
  return { chat, messages }
}

// Every message leads to a first one: parents exist, and form no circle.
function checkTree(messages: Messages, place: string): void {
  const rooted = new Set<string>()
  for (const start of messages.values()) {
    const walked: string[] = []
    const onWay = new Set<string>()
    for (let message: Message | undefined = start; message !== undefined && !rooted.has(message.id);) {
      if (onWay.has(message.id)) throw new Error(`${place} has messages in a circle: the file is damaged.`)
      onWay.add(message.id)
      walked.push(message.id)
      if (message.parent === null) break
      const parent: Message | undefined = messages.get(message.parent)
      if (parent === undefined) throw new Error(`${place} lacks a message that others answer: the file is damaged.`)
      message = parent
    }
    for (const id of walked) rooted.add(id)
  }
}

function messageOf(value: unknown, chat: string, place: string): Message {
  if (!isObject(value)) throw new Error(`${place} is not a message.`)
  const { role, parent, ended } = value
  if (role !== 'user' && role !== 'assistant') throw new Error(`${place} has an unknown role.`)
  const found: Message = {
    id: idOf(value['id'], place),
    chat,
    parent: parent === null ? null : idOf(parent, place),
    role,
    made: time(value['made'], place),
    text: text(value['text'], MAX_TEXT, place),
  }
  if (value['images'] !== undefined) found.images = imagesOf(value['images'], place)
  if (value['thinking'] !== undefined) found.thinking = text(value['thinking'], MAX_TEXT, place)
  for (const name of ['model', 'host', 'error'] as const)
    if (value[name] !== undefined) found[name] = text(value[name], MAX_LINE, place)
  for (const name of ['thinkingSeconds', 'speed', 'tokens', 'firstSeconds'] as const)
    if (value[name] !== undefined) found[name] = amount(value[name], place)
  if (ended === 'stopped' || ended === 'length' || ended === 'error') found.ended = ended
  if (value['parameters'] !== undefined) found.parameters = validParameters(value['parameters'])
  if (value['prompted'] === true) found.prompted = true
  return found
}

function idOf(value: unknown, place: string): string {
  if (typeof value !== 'string' || !ID.test(value)) throw new Error(`${place} has an invalid id.`)
  return value
}

function text(value: unknown, most: number, place: string): string {
  if (typeof value !== 'string') throw new Error(`${place} has an invalid text.`)
  if (value.length > most) throw new Error(`${place} is too long.`)
  return value
}

function amount(value: unknown, place: string): number {
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0)
    throw new Error(`${place} has an invalid number.`)
  return value
}

// Milliseconds since the epoch that a date can hold.
function time(value: unknown, place: string): number {
  const found = amount(value, place)
  if (found > 8.64e15) throw new Error(`${place} has an invalid time.`)
  return found
}

function imagesOf(value: unknown, place: string): string[] {
  if (!Array.isArray(value) || value.length > MAX_IMAGES) throw new Error(`${place} has too many images.`)
  return value.map((one: unknown) => {
    // Pictures of other kinds are documents (SVG), and other addresses would be requested.
    if (typeof one !== 'string' || one.length > MAX_IMAGE || !IMAGE.test(one))
      throw new Error(`${place} has an image that is not a PNG, JPEG, WebP or GIF.`)
    return one
  })
}

// The same chat under other ids.
export function renewed({ chat, messages }: WholeChat, newId: () => string): WholeChat {
  const ids = new Map([chat.id, ...messages.map((message) => message.id)].map((id) => [id, newId()]))
  const id = (old: string): string => ids.get(old) as string
  return {
    chat: { ...chat, id: id(chat.id), leaf: chat.leaf === null ? null : id(chat.leaf) },
    messages: messages.map((message) => ({
      ...message,
      id: id(message.id),
      chat: id(chat.id),
      parent: message.parent === null ? null : id(message.parent),
    })),
  }
}

// The shown path of a chat as Markdown.
export function asMarkdown(chat: Chat, messages: Messages): string {
  const parts = [`# ${oneLine(chat.title)}`]
  if (chat.system.trim() !== '') parts.push(`## System prompt\n\n${chat.system.trim()}`)
  for (const message of pathTo(messages, chat.leaf)) {
    const by = message.role === 'user' ? 'You' : oneLine(message.model ?? 'The model')
    const facts = message.role === 'user' ? [] : [message.host ?? '', ...parameterTexts(message.parameters ?? {})]
    const said = facts.filter(Boolean).join(', ')
    const pictures = message.images === undefined ? '' : `*${message.images.length} image(s), not in this file*\n\n`
    parts.push(`## ${by}${said === '' ? '' : ` (${oneLine(said)})`}\n\n${pictures}${message.text.trim()}`)
    if (message.ended === 'error') parts.push(`*The answer broke off: ${oneLine(message.error ?? 'unknown reason')}*`)
  }
  return `${parts.join('\n\n')}\n`
}

function oneLine(value: string): string {
  return value.replace(/\s+/g, ' ').trim()
}

// A name for a file, from a title that may contain anything.
export function fileName(title: string, ending: string): string {
  const plain = title
    .normalize('NFKD')
    .replace(/[^\p{L}\p{N}]+/gu, '-')
    .replace(/^-+|-+$/g, '')
    .slice(0, 60)
  return `${plain || 'chat'}.${ending}`
}
