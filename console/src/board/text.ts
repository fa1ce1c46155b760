// Texts of others: what is shown of them. Pure. They are data: no markup, no control characters, links to web pages only.

// Control and format characters, which can hide or reorder text: all but line feeds, tabs, and the two joiners that
// emoji and some scripts need. The others are invisible letters and variation selectors that can carry hidden text.
const INVISIBLE = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\u115f\u1160\u2028\u2029\u3164\uffa0\u{e0100}-\u{e01ef}]/gu
const URL_PATTERN = /\bhttps?:\/\/[^\s<>"'`\\^{|}]+/gi
// What follows an address in a sentence.
const AFTER_URL = /[.,;:!?)\]*_]+$/

// Longer texts are folded.
const MAX_LETTERS = 700
const MAX_LINES = 10

export interface TextPart {
  text: string
  link: boolean
}

export function cleaned(text: string): string {
  return text.replace(/\r\n?/g, '\n').replace(INVISIBLE, '')
}

// A name, a key or a room in one line.
export function cleanedName(text: string): string {
  return cleaned(text).replace(/\s+/g, ' ').trim()
}

// The text in parts; a link's text is its full target, as the browser reads it.
export function partsOf(text: string): TextPart[] {
  const parts: TextPart[] = []
  let begin = 0
  for (const match of text.matchAll(URL_PATTERN)) {
    const found = balanced(match[0])
    const target = targetOf(found)
    if (target === null) continue
    if (match.index > begin) parts.push({ text: text.slice(begin, match.index), link: false })
    parts.push({ text: target, link: true })
    begin = match.index + found.length
  }
  if (begin < text.length) parts.push({ text: text.slice(begin), link: false })
  return parts
}

// Without the punctuation after it; a bracket that was opened in the address belongs to it.
function balanced(text: string): string {
  let found = text.replace(AFTER_URL, '')
  if (text[found.length] === ')' && found.includes('(') && !found.includes(')')) found += ')'
  return found
}

// null: no address, or one with a user name, which can look like another host.
function targetOf(text: string): string | null {
  try {
    const url = new URL(text)
    return url.hostname === '' || url.username !== '' || url.password !== '' ? null : url.href
  } catch {
    return null
  }
}

// The beginning of a long text, ending with a whole word or line; null: the text is short enough.
export function folded(text: string): string | null {
  const lines = text.split('\n')
  if (text.length <= MAX_LETTERS && lines.length <= MAX_LINES) return null
  const few = lines.slice(0, MAX_LINES).join('\n')
  if (few.length <= MAX_LETTERS) return `${few.trimEnd()} …`
  // Not inside a pair of surrogates.
  const head = [...few.slice(0, MAX_LETTERS + 1)].slice(0, -1).join('')
  const space = head.search(/\s\S*$/)
  return `${(space > MAX_LETTERS / 2 ? head.slice(0, space) : head).trimEnd()} …`
}

export function bytesOf(text: string): number {
  return new TextEncoder().encode(text).length
}
