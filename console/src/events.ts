// Parses server-sent events from pieces of a stream. Pure. The browser's EventSource cannot send an authorization header.

const END = '\n\n'

export interface ServerEvent {
  name: string
  data: string
}

export class Events {
  private rest = ''

  // The events with data that are complete after this piece.
  feed(piece: string): ServerEvent[] {
    // A piece may end inside the end mark.
    const from = Math.max(0, this.rest.length - 1)
    this.rest += piece
    const found: ServerEvent[] = []
    let begin = 0
    for (let end = this.rest.indexOf(END, from); end >= 0; end = this.rest.indexOf(END, begin)) {
      const lines = this.rest.slice(begin, end).split('\n')
      const data = valueOf(lines, 'data: ')
      if (data !== null) found.push({ name: valueOf(lines, 'event: ') ?? 'message', data })
      begin = end + END.length
    }
    this.rest = this.rest.slice(begin)
    return found
  }
}

function valueOf(lines: readonly string[], field: string): string | null {
  const line = lines.find((one) => one.startsWith(field))
  return line === undefined ? null : line.slice(field.length)
}
