// The owner's buttons of one model: load, drop and, before the last host of a wanted model is dropped, a question.

import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { drop, forgetResult, load, pending, results } from '../acts'
import { dropWarning } from '../mesh/drop-warning'
import type { MeshModel } from '../mesh/models'
import { Icon } from '../parts/icons'
import { access, connection, status } from '../state'

// Whether this page may load, drop and download: only the owner's, and not for a client, which serves nothing.
export function mayAct(): boolean {
  return access.value === 'owner' && connection.value === 'live' && status.value?.mesh?.role !== 'client'
}

const GONE = ['stopping', 'stopped']

export function ModelButtons({ model }: { model: MeshModel }): JSX.Element | null {
  const [asks, setAsks] = useState(false)
  const dropButton = useRef<HTMLButtonElement>(null)
  const keepButton = useRef<HTMLButtonElement>(null)
  const asked = useRef(false)
  useEffect(() => {
    if (asks) keepButton.current?.focus()
    else if (asked.current) dropButton.current?.focus()
    asked.current = asks
  }, [asks])
  if (!mayAct() || status.value === null) return null
  const { name, here } = model
  const served = here !== null && !GONE.includes(here.phase)
  // A model that only a backend serves has no file.
  const loadable =
    model.onDisk.length + model.wantedBy.length > 0 || model.hosts.some((node) => node.role !== 'backend')
  const warning = dropWarning(model, status.value)
  const busy = pending.value.has(name)
  const begin = (work: (name: string) => Promise<void>): void => {
    setAsks(false)
    void work(name)
  }
  if (asks && served && warning !== '') {
    return (
      <>
        <p class="notice worrying" role="alert">
          {warning}
        </p>
        <button type="button" class="button small" ref={keepButton} onClick={() => setAsks(false)}>
          Keep it
        </button>
        <button type="button" class="button small danger" onClick={() => begin(drop)}>
          Drop it
        </button>
      </>
    )
  }
  return (
    <>
      {(served ? here.phase === 'failed' : loadable) && (
        <button type="button" class="button small" disabled={busy} onClick={() => begin(load)}>
          <Icon name="plus" size={16} />
          {served ? 'Try again' : 'Load here'}
          <span class="unseen"> {name}</span>
        </button>
      )}
      {served && (
        <button
          type="button"
          class="button small"
          disabled={busy}
          ref={dropButton}
          onClick={() => (warning === '' ? begin(drop) : setAsks(true))}
        >
          <Icon name="close" size={16} />
          Drop
          <span class="unseen"> {name}</span>
        </button>
      )}
      <ActNotice name={name} />
    </>
  )
}

// What became of the last act, until it is hidden.
export function ActNotice({ name }: { name: string }): JSX.Element | null {
  const result = results.value.get(name)
  if (result === undefined) return null
  return (
    <p class={`notice${result.failed ? ' worrying' : ''}`} role={result.failed ? 'alert' : 'status'}>
      {result.text}{' '}
      <button type="button" class="button small" onClick={() => forgetResult(name)}>
        Hide
      </button>
    </p>
  )
}
