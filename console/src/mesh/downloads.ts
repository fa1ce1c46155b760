// A download as the daemon streams it: JSON lines become the state that the page shows. Pure.

import { bytes } from '../format'

export interface DownloadState {
  name: string // as it was asked for
  running: boolean
  stage: string
  fraction: number | null // null: not known
  detail: string
  models: string[] // their names, when they are complete
  problem: string // why it failed and what to do; empty: it has not
  files: Record<string, number> // bytes that are expected, by file
  done: Record<string, number> // bytes that have arrived
}

export function begun(name: string): DownloadState {
  return {
    name,
    running: true,
    stage: 'starting',
    fraction: null,
    detail: '',
    models: [],
    problem: '',
    files: {},
    done: {},
  }
}

// Splits pieces of a stream into lines.
export class Lines {
  private rest = ''

  feed(piece: string): string[] {
    const lines = (this.rest + piece).split('\n')
    this.rest = lines.pop() ?? ''
    return lines.filter((line) => line.trim() !== '')
  }
}

interface DownloadEvent {
  event?: string
  files?: Record<string, number>
  stage?: string
  file?: string
  source?: string
  done?: number
  total?: number
  detail?: string
  models?: string[]
  message?: string
  advice?: string
}

// The state after one line. A line that is not understood changes nothing: a newer daemon may say more.
export function advanced(state: DownloadState, line: string): DownloadState {
  let event: DownloadEvent
  try {
    event = JSON.parse(line) as DownloadEvent
  } catch {
    return state
  }
  switch (event.event) {
    case 'expected':
      return withFraction({ ...state, files: { ...state.files, ...event.files } })
    case 'progress':
      return progressed(state, event)
    case 'failed':
      return failed(state, `${event.message ?? 'It failed.'} ${event.advice ?? ''}`.trim())
    case 'complete':
      return { ...state, running: false, stage: 'complete', fraction: 1, detail: '', models: event.models ?? [] }
    default:
      return state
  }
}

export function failed(state: DownloadState, problem: string): DownloadState {
  return { ...state, running: false, stage: 'failed', detail: '', problem }
}

function progressed(state: DownloadState, event: DownloadEvent): DownloadState {
  const { file = '', done = 0, total = 0, stage = '', detail = '', source = '' } = event
  const files = total > 0 ? { ...state.files, [file]: total } : state.files
  const arrived = total > 0 ? { ...state.done, [file]: done } : state.done
  return withFraction({
    ...state,
    files,
    done: arrived,
    stage,
    detail: detail || (source === '' ? '' : `from ${source}`),
  })
}

function withFraction(state: DownloadState): DownloadState {
  const all = sum(Object.values(state.files))
  return { ...state, fraction: all > 0 ? Math.min(1, sum(Object.values(state.done)) / all) : null }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((one, other) => one + other, 0)
}

// What a download does now: "downloading: 1.2 GB of 4.7 GB, from amber".
export function downloadText(state: DownloadState): string {
  const all = sum(Object.values(state.files))
  const size = all > 0 && state.running ? `${bytes(sum(Object.values(state.done)))} of ${bytes(all)}` : ''
  const about = [size, state.detail].filter(Boolean).join(', ')
  return about === '' ? state.stage : `${state.stage}: ${about}`
}
