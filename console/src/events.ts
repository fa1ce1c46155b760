// Parses server-sent events from pieces of a stream. Pure. The browser's EventSource cannot send an authorization header.

const END = '\n\n'
const DATA = 'data: '

export class Events {
  private rest = ''

  // The data of the events that are complete after this piece.
  feed(piece: string): string[] {
    // A piece may end inside the end mark.
    const from = Math.max(0, this.rest.length - 1)
    this.rest += piece
    const found: string[] = []
    let begin = 0
    for (let end = this.rest.indexOf(END, from); end >= 0; end = this.rest.indexOf(END, begin)) {
      const data = dataOf(this.rest.slice(begin, end))
      if (data !== null) found.push(data)
      begin = end + END.length
    }
    this.rest = this.rest.slice(begin)
    return found
  }
}

function dataOf(event: string): string | null {
  const line = event.split('\n').find((one) => one.startsWith(DATA))
  return line === undefined ? null : line.slice(DATA.length)
}
