// Adding models to this node, for its owner: what lies on its disk, the catalogue, and downloads with their progress.

import type { JSX } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import type { CatalogModelFacts } from '../api'
import {
  download,
  downloads,
  forgetDownload,
  library,
  libraryProblem,
  load,
  pending,
  refreshLibrary,
  stopDownload,
} from '../acts'
import { bytes, tokens } from '../format'
import { downloadText, type DownloadState } from '../mesh/downloads'
import { Progress } from '../parts/basics'
import { Icon } from '../parts/icons'
import { models } from '../state'
import { ActNotice, mayAct } from './model-acts'

// Models of the catalogue that are listed until a text is typed.
const SHOWN = 8

export function Library(): JSX.Element | null {
  const [text, setText] = useState('')
  const may = mayAct()
  useEffect(() => {
    if (may) void refreshLibrary()
  }, [may])
  if (!may) return null
  const known = library.value
  const served = new Set(models.value.filter((model) => model.here !== null).map((model) => model.name))
  const typed = text.trim()
  const disk = (known?.disk ?? []).filter(({ name }) => !served.has(name) && has(name, typed))
  const catalog = (known?.catalog ?? []).filter(
    (model) => !model.on_disk && has(`${model.name} ${model.license}`, typed),
  )
  const shown = typed === '' ? catalog.slice(0, SHOWN) : catalog
  return (
    <section class="card library" aria-labelledby="library-title">
      <h2 id="library-title">Add a model to this node</h2>
      <label class="field">
        Name, org/repo:QUANT of the hub, or the path of a GGUF file
        <input type="text" value={text} spellcheck={false} onInput={(event) => setText(event.currentTarget.value)} />
      </label>
      {typed !== '' && (
        <div class="line">
          <LoadButton name={typed} label="Load what is typed" />
          <DownloadButton name={typed} label="Download what is typed" />
          <ActNotice name={typed} />
        </div>
      )}
      {libraryProblem.value !== '' && (
        <p class="notice worrying" role="alert">
          {libraryProblem.value}
        </p>
      )}
      <Downloads />
      {disk.length > 0 && (
        <>
          <h3>On the disk of this node</h3>
          <ul>
            {disk.map(({ name, size }) => (
              <Entry key={name} name={name} facts={[bytes(size)]} onDisk />
            ))}
          </ul>
        </>
      )}
      {shown.length > 0 && (
        <>
          <h3>To download</h3>
          <ul>
            {shown.map((model) => (
              <Entry key={model.name} name={model.name} facts={factsOf(model)} />
            ))}
          </ul>
          {shown.length < catalog.length && (
            <p class="quiet">And {catalog.length - shown.length} more: type a part of a name.</p>
          )}
        </>
      )}
      {known === null && libraryProblem.value === '' && (
        <p class="quiet" role="status">
          Looking for models …
        </p>
      )}
    </section>
  )
}

function has(name: string, typed: string): boolean {
  const said = name.toLowerCase()
  return typed
    .toLowerCase()
    .split(/\s+/)
    .every((word) => said.includes(word))
}

const FITS = { fits: 'fits', 'less-context': 'fits', split: '', 'too-big': 'too large for this machine' } as const

function factsOf(model: CatalogModelFacts): string[] {
  const fit =
    model.fit === 'split'
      ? `needs ${model.machines} machines like this one`
      : model.fit === 'less-context'
        ? `fits with ${tokens(model.context_length)} context`
        : FITS[model.fit]
  const kind = model.purpose === 'embed' ? 'embeddings' : model.purpose === 'rerank' ? 'ranking' : ''
  const here = model.percent > 0 ? `${model.percent} % here` : ''
  return [bytes(model.size), fit, kind, model.vision ? 'images' : '', model.license, here].filter(Boolean)
}

interface EntryProps {
  name: string
  facts: string[]
  onDisk?: boolean
}

function Entry({ name, facts, onDisk = false }: EntryProps): JSX.Element {
  return (
    <li>
      <p>
        <span class="name">{name}</span>
        <span class="quiet">{facts.join(' · ')}</span>
      </p>
      <div class="line">
        {!onDisk && <DownloadButton name={name} label="Download" />}
        <LoadButton name={name} label={onDisk ? 'Load' : 'Download and load'} />
      </div>
      <ActNotice name={name} />
    </li>
  )
}

function LoadButton({ name, label }: { name: string; label: string }): JSX.Element {
  return (
    <button type="button" class="button small" disabled={pending.value.has(name)} onClick={() => void load(name)}>
      <Icon name="plus" size={16} />
      {label}
      <span class="unseen"> {name}</span>
    </button>
  )
}

function DownloadButton({ name, label }: { name: string; label: string }): JSX.Element {
  const busy = downloads.value.some((one) => one.name === name && one.running)
  return (
    <button type="button" class="button small" disabled={busy} onClick={() => void download(name)}>
      <Icon name="download" size={16} />
      {label}
      <span class="unseen"> {name}</span>
    </button>
  )
}

function Downloads(): JSX.Element | null {
  if (downloads.value.length === 0) return null
  return (
    <div class="downloads">
      <h3>Downloads</h3>
      {downloads.value.some((one) => one.running) && (
        <p class="quiet">A download stops when this page is closed; what has arrived is kept.</p>
      )}
      <ul aria-label="Downloads">
        {downloads.value.map((one) => (
          <DownloadRow key={one.name} state={one} />
        ))}
      </ul>
    </div>
  )
}

function DownloadRow({ state }: { state: DownloadState }): JSX.Element {
  const { name, running, models: complete, problem } = state
  return (
    <li>
      <p>
        <span class="name">{name}</span>
        {running && <span class="quiet">{downloadText(state)}</span>}
      </p>
      {running && <Progress fraction={state.fraction} label={`${name}: ${state.stage}`} />}
      {problem !== '' && (
        <p class="notice worrying" role="alert">
          {problem}
        </p>
      )}
      {complete.length > 0 && <p role="status">{complete.join(', ')} is on the disk of this node.</p>}
      <div class="line">
        {running ? (
          <button type="button" class="button small" onClick={() => stopDownload(name)}>
            <Icon name="stop" size={16} />
            Stop
            <span class="unseen"> the download of {name}</span>
          </button>
        ) : (
          <>
            {complete.map((model) => (
              <LoadButton key={model} name={model} label="Load" />
            ))}
            {problem !== '' && <DownloadButton name={name} label="Try again" />}
            <button type="button" class="button small" onClick={() => forgetDownload(name)}>
              Hide
            </button>
          </>
        )}
      </div>
    </li>
  )
}
