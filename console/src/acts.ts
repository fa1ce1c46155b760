// The owner's acts on models: load, drop and download, with their progress and problems. What has begun goes on while
// other views are shown. A download ends with the page; what has arrived is kept.

import { signal } from '@preact/signals'
import type { DropAnswer, LibraryAnswer, LoadAnswer } from './api'
import { post, refusalOf, textOf, withBody } from './ask'
import { advanced, begun, failed, Lines, type DownloadState } from './mesh/downloads'

// What became of the last act on a model, by the name that it was asked for.
export interface ActResult {
  text: string
  failed: boolean
}

export const pending = signal<ReadonlySet<string>>(new Set())
export const results = signal<ReadonlyMap<string, ActResult>>(new Map())
export const downloads = signal<readonly DownloadState[]>([])
// null: not loaded yet
export const library = signal<LibraryAnswer | null>(null)
export const libraryProblem = signal('')

const running = new Map<string, AbortController>()

export async function load(name: string): Promise<void> {
  await act(name, async () => {
    const { model, serves } = await post<LoadAnswer>('/api/models/load', { model: name })
    return serves ? `${model} is served already.` : `${model} is being loaded.`
  })
}

export async function drop(name: string): Promise<void> {
  await act(name, async () => {
    const { model } = await post<DropAnswer>('/api/models/drop', { model: name })
    return `${model} is dropped: answers in progress end first.`
  })
}

async function act(name: string, work: () => Promise<string>): Promise<void> {
  if (pending.value.has(name)) return
  pending.value = new Set(pending.value).add(name)
  try {
    tell(name, { text: await work(), failed: false })
  } catch (error) {
    tell(name, { text: textOf(error), failed: true })
  } finally {
    const left = new Set(pending.value)
    left.delete(name)
    pending.value = left
    void refreshLibrary()
  }
}

function tell(name: string, result: ActResult): void {
  results.value = new Map(results.value).set(name, result)
}

export function forgetResult(name: string): void {
  const left = new Map(results.value)
  if (left.delete(name)) results.value = left
}

export async function refreshLibrary(): Promise<void> {
  try {
    library.value = await post<LibraryAnswer>('/api/models/library', {})
    libraryProblem.value = ''
  } catch (error) {
    libraryProblem.value = textOf(error)
  }
}

export async function download(name: string): Promise<void> {
  if (running.has(name)) return
  const own = new AbortController()
  running.set(name, own)
  let state = begun(name)
  const show = (next: DownloadState): void => {
    state = next
    const others = downloads.value.filter((one) => one.name !== name)
    downloads.value = [...others, state]
  }
  show(state)
  try {
    const answer = await fetch('/api/downloads', { ...withBody({ name }), signal: own.signal })
    if (!answer.ok || answer.body === null) throw await refusalOf(answer)
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
    const lines = new Lines()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      for (const line of lines.feed(value)) show(advanced(state, line))
    }
    if (state.running) show(failed(state, 'The node ended the download. Start it again: what has arrived is kept.'))
  } catch (error) {
    const stopped = own.signal.aborted
    show(failed(state, stopped ? 'Stopped. What has arrived is kept.' : textOf(error)))
  } finally {
    running.delete(name)
    void refreshLibrary()
  }
}

export function stopDownload(name: string): void {
  running.get(name)?.abort()
}

export function forgetDownload(name: string): void {
  downloads.value = downloads.value.filter((one) => one.name !== name || one.running)
}
