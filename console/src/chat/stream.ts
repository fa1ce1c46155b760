// Reads an answer as it streams: server-sent events of `/v1/chat/completions`, and the comments between them.
//
// Law: pure, and indifferent to how the bytes were cut: any cut of the same stream reads the same.

export interface Answer {
  text: string
  thinking: string
  tokens: number | null // written, as the engine counts
  speed: number | null // tokens per second, as the engine says
  finish: string | null // why it ended: "stop", "length", ...; null until it has
  host: string | null // who answered, as the gateway says: "engine", "peer ID", "backend URL"
  news: string // what the gateway says while it waits
  error: string | null
}

export function blank(): Answer {
  return { text: '', thinking: '', tokens: null, speed: null, finish: null, host: null, news: '', error: null }
}

interface Chunk {
  choices?: {
    delta?: { content?: unknown; reasoning_content?: unknown; reasoning?: unknown }
    finish_reason?: unknown
  }[]
  usage?: { completion_tokens?: unknown } | null
  timings?: { predicted_per_second?: unknown; predicted_n?: unknown }
  error?: { message?: unknown }
}

const ANSWERED_BY = 'answered by '

// Takes pieces of text, gives the answer so far.
export class Reader {
  readonly answer = blank()
  private rest = ''
  private readonly split = new ThoughtSplitter()

  feed(piece: string): void {
    const lines = (this.rest + piece).split('\n')
    this.rest = lines.pop() ?? ''
    for (const line of lines) this.line(line.endsWith('\r') ? line.slice(0, -1) : line)
  }

  // There is no more.
  end(): void {
    if (this.rest !== '') this.line(this.rest)
    this.rest = ''
    this.take(this.split.end())
  }

  private line(line: string): void {
    if (line.startsWith(':')) this.comment(line.slice(1).trim())
    else if (line.startsWith('data:')) this.data(line.slice(5).trim())
  }

  private comment(words: string): void {
    if (words.startsWith(ANSWERED_BY)) this.answer.host = words.slice(ANSWERED_BY.length)
    else if (words !== '') this.answer.news = words
  }

  private data(text: string): void {
    if (text === '' || text === '[DONE]') return
    let chunk: Chunk
    try {
      chunk = JSON.parse(text) as Chunk
    } catch {
      this.answer.error = 'The answer cannot be read.'
      return
    }
    this.chunk(chunk)
  }

  private chunk(chunk: Chunk): void {
    const { answer } = this
    if (chunk.error !== undefined)
      answer.error = typeof chunk.error.message === 'string' ? chunk.error.message : 'The answer broke off.'
    const choice = chunk.choices?.[0]
    const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning
    if (typeof thought === 'string') answer.thinking += thought
    if (typeof choice?.delta?.content === 'string') this.take(this.split.feed(choice.delta.content))
    if (typeof choice?.finish_reason === 'string') answer.finish = choice.finish_reason
    const tokens = chunk.usage?.completion_tokens ?? chunk.timings?.predicted_n
    if (typeof tokens === 'number') answer.tokens = tokens
    const speed = chunk.timings?.predicted_per_second
    if (typeof speed === 'number' && Number.isFinite(speed)) answer.speed = speed
  }

  private take(parts: { text: string; thinking: string }): void {
    this.answer.text += parts.text
    this.answer.thinking += parts.thinking
  }
}

const [OPEN, CLOSE] = ['<think>', '</think>']

// Some servers leave the thinking in the answer, between two tags at its beginning: it is told apart here.
export class ThoughtSplitter {
  private state: 'before' | 'thinking' | 'gap' | 'after' = 'before'
  private held = ''

  feed(piece: string): { text: string; thinking: string } {
    if (this.state === 'after') return { text: piece, thinking: '' }
    if (this.state === 'gap') return { text: this.cross(piece), thinking: '' }
    this.held += piece
    if (this.state === 'before') {
      const start = this.held.trimStart()
      if (start.startsWith(OPEN)) {
        this.state = 'thinking'
        this.held = start.slice(OPEN.length)
      } else if (!OPEN.startsWith(start)) {
        return { text: this.leave(), thinking: '' }
      } else {
        return { text: '', thinking: '' } // not enough yet to tell
      }
    }
    return this.think()
  }

  end(): { text: string; thinking: string } {
    const thinking = this.state === 'thinking'
    const held = this.leave()
    return thinking ? { text: '', thinking: held } : { text: held, thinking: '' }
  }

  private think(): { text: string; thinking: string } {
    const at = this.held.indexOf(CLOSE)
    if (at >= 0) {
      const thinking = this.held.slice(0, at)
      const rest = this.held.slice(at + CLOSE.length)
      this.held = ''
      this.state = 'gap'
      return { text: this.cross(rest), thinking }
    }
    // The end may be the beginning of the closing tag.
    const kept = longestOverlap(this.held, CLOSE)
    const thinking = this.held.slice(0, this.held.length - kept)
    this.held = this.held.slice(this.held.length - kept)
    return { text: '', thinking }
  }

  // The empty lines between the thinking and the answer belong to neither.
  private cross(piece: string): string {
    const text = piece.replace(/^\n+/, '')
    if (text !== '') this.state = 'after'
    return text
  }

  private leave(): string {
    const held = this.held
    this.held = ''
    this.state = 'after'
    return held
  }
}

// How much of the end of `text` is the beginning of `mark`.
function longestOverlap(text: string, mark: string): number {
  for (let length = Math.min(text.length, mark.length - 1); length > 0; length -= 1) {
    if (text.endsWith(mark.slice(0, length))) return length
  }
  return 0
}
