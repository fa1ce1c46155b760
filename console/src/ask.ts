// Requests to the console API, with errors as texts for people.

import { signal } from '@preact/signals'
import type { ErrorAnswer } from './api'
import { consoleHeaders } from './key'

// How much later the node's clock is than this device's, in ms; 0 if both agree within what a header can say.
export const clockOffset = signal(0)
const CLOCKS_AGREE_MS = 2000

// An answer with an error status. `code` is for programs.
export class Refused extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
  ) {
    super(message)
  }
}

// A request with a JSON body.
export function withBody(body: object): RequestInit {
  return {
    method: 'POST',
    headers: { ...consoleHeaders(), 'content-type': 'application/json' },
    body: JSON.stringify(body),
  }
}

// Throws Refused for an error status, and what `fetch` throws.
export async function post<Answer>(path: string, body: object, signal?: AbortSignal): Promise<Answer> {
  return answerOf<Answer>(await fetch(path, { ...withBody(body), ...(signal === undefined ? {} : { signal }) }))
}

// As `post`.
export async function get<Answer>(path: string, signal: AbortSignal): Promise<Answer> {
  return answerOf<Answer>(await fetch(path, { headers: consoleHeaders(), signal }))
}

async function answerOf<Answer>(answer: Response): Promise<Answer> {
  const date = Date.parse(answer.headers.get('date') ?? '')
  if (!Number.isNaN(date)) {
    const offset = date + 500 - Date.now() // the header has whole seconds
    clockOffset.value = Math.abs(offset) < CLOCKS_AGREE_MS ? 0 : offset
  }
  if (!answer.ok) throw await refusalOf(answer)
  return (await answer.json()) as Answer
}

export async function refusalOf(answer: Response): Promise<Refused> {
  try {
    const { code, message } = ((await answer.json()) as ErrorAnswer).error
    return new Refused(message, answer.status, code)
  } catch {
    const text = `The node answered with status ${answer.status}. 'mesh-llm logs' says more.`
    return new Refused(text, answer.status, '')
  }
}

// A fetch that gets no answer throws a TypeError with a text of the browser's.
export function textOf(error: unknown): string {
  if (error instanceof TypeError) return 'The node does not answer. Check that it runs, then try again.'
  return error instanceof Error ? error.message : String(error)
}
