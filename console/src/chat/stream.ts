// Parses a streamed answer of /v1/chat/completions: server-sent events and comments, in pieces of any size. Pure.

export interface Answer {
  text: string
  thinking: string
  tokens: number | null // completion tokens, as the engine reports
  speed: number | null // tokens per second, as the engine reports
  finish: string | null // finish reason: "stop", "length", ...; null while it streams
  host: string | null // the target that answers, as the gateway reports: "engine", "peer ID", "backend URL"
  progress: string // the gateway's last comment while it waits
  error: string | null
}

function emptyAnswer(): Answer {
  return { text: '', thinking: '', tokens: null, speed: null, finish: null, host: null, progress: '', error: null }
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

// Collects the answer from pieces of the stream.
export class AnswerReader {
  readonly answer = emptyAnswer()
  private rest = ''
  private readonly split = new ThinkingSplitter()

  feed(piece: string): void {
    const lines = (this.rest + piece).split('\n')
    this.rest = lines.pop() ?? ''
    for (const line of lines) this.line(line.endsWith('\r') ? line.slice(0, -1) : line)
  }

  // The stream has ended.
  end(): void {
    if (this.rest !== '') this.line(this.rest)
    this.rest = ''
    this.take(this.split.end())
  }

  private line(line: string): void {
    if (line.startsWith(':')) this.comment(line.slice(1).trim())
    else if (line.startsWith('data:')) this.data(line.slice(5).trim())
  }

  private comment(text: string): void {
    if (text.startsWith(ANSWERED_BY)) this.answer.host = text.slice(ANSWERED_BY.length)
    else if (text !== '') this.answer.progress = text
  }

  private data(text: string): void {
    if (text === '' || text === '[DONE]') return
    let chunk: Chunk
    try {
      chunk = JSON.parse(text) as Chunk
    } catch {
      this.answer.error = 'The answer contains invalid JSON.'
      return
    }
    this.chunk(chunk)
  }

  private chunk(chunk: Chunk): void {
    const { answer } = this
    if (chunk.error !== undefined)
      answer.error = typeof chunk.error.message === 'string' ? chunk.error.message : 'The answer was interrupted.'
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

// Separates the thinking from the text for servers that send both as text, with the thinking between two tags.
export class ThinkingSplitter {
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
        return { text: '', thinking: '' } // too short to decide
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
    // The end may be the start of the closing tag.
    const kept = longestOverlap(this.held, CLOSE)
    const thinking = this.held.slice(0, this.held.length - kept)
    this.held = this.held.slice(this.held.length - kept)
    return { text: '', thinking }
  }

  // Skips the empty lines between thinking and text.
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

// Length of the longest suffix of `text` that is a prefix of `mark`.
function longestOverlap(text: string, mark: string): number {
  for (let length = Math.min(text.length, mark.length - 1); length > 0; length -= 1) {
    if (text.endsWith(mark.slice(0, length))) return length
  }
  return 0
}
