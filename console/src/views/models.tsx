// The models as a list: availability, hosts, progress and splits.

import type { JSX } from 'preact'
import { useEffect, useRef } from 'preact/hooks'
import type { SplitStatus } from '../api'
import { explanation, type MeshModel, type Availability } from '../mesh/models'
import { Badge, Empty, Progress, type Tone } from '../parts/basics'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { address, route } from '../route'
import { models, status } from '../state'
import { bytes, counted, percent, tokens } from '../format'
import { Transfers } from './transfers'
import { Split } from './split'
import { Demand } from './demand'
import { Library } from './library'
import { ModelButtons } from './model-acts'

const TONES: Record<Availability, Tone> = {
  serving: 'good',
  starting: 'busy',
  failed: 'bad',
  requested: 'worrying',
  unconfirmed: 'plain',
  'on disk': 'plain',
}

export function Models(): JSX.Element {
  const list = models.value
  const serving = list.filter((model) => model.availability === 'serving').length
  return (
    <section class="page" aria-labelledby="models-title">
      <div class="head">
        <h1 id="models-title">Models</h1>
        <p>{list.length === 0 ? 'no models known' : `${counted(serving, 'model')} served, ${list.length} known`}</p>
      </div>
      {list.length === 0 && (
        <Empty title="No model yet">
          <p>
            Load one with <code>mesh-llm load NAME</code>; <code>mesh-llm download</code> lists the names.
          </p>
        </Empty>
      )}
      <ul class="rows">
        {list.map((model) => (
          <Row
            key={model.name}
            model={model}
            split={status.value?.splits.find((split) => split.model === model.name)}
            open={route.value.rest === model.name}
          />
        ))}
      </ul>
      <Demand />
      <Library />
      <Transfers />
    </section>
  )
}

interface RowProps {
  model: MeshModel
  split: SplitStatus | undefined
  open: boolean
}

const Row = memo(function Row({ model, split, open }: RowProps): JSX.Element {
  const progress = model.here?.progress ?? null
  const facts = [
    model.here?.file?.quantization ?? '',
    model.size > 0 ? bytes(model.size) : '',
    model.context > 0 ? `${tokens(model.context)} context` : '',
    model.slots > 0 ? `${model.active} of ${model.slots} slots busy` : '',
    model.waiting > 0 ? `${model.waiting} waiting` : '',
    model.purpose !== null && model.purpose !== 'generate'
      ? `for ${model.purpose === 'embed' ? 'embeddings' : 'ranking'}`
      : '',
    model.callsTools === null || (model.purpose ?? 'generate') !== 'generate'
      ? ''
      : model.callsTools
        ? 'calls tools'
        : 'no tool calls',
    model.aliases.length > 0 ? `also ${model.aliases.join(', ')}` : '',
  ].filter(Boolean)
  const place = useRef<HTMLLIElement>(null)
  useEffect(() => {
    if (open) place.current?.scrollIntoView({ block: 'center' })
  }, [open])
  const chat = model.availability === 'serving' && (model.purpose === null || model.purpose === 'generate')
  return (
    <li ref={place} class={`row model${open ? ' chosen' : ''}`}>
      <p class="title">
        <span class="name">{model.name}</span>
      </p>
      <Badge tone={TONES[model.availability]}>{badge(model)}</Badge>
      <p class="summary">{explanation(model)}</p>
      <p class="numbers">
        {facts.map((fact) => (
          <span key={fact}>{fact}</span>
        ))}
      </p>
      {progress !== null && <Progress fraction={progress.fraction} label={`${model.name}: ${progress.stage}`} />}
      {split !== undefined && <Split split={split} />}
      {model.hosts.length > 0 && <Hosts model={model} />}
      <div class="actions">
        {chat && (
          <a class="button small" href={address('chat', `new/${model.name}`)}>
            <Icon name="chat" size={16} />
            Chat
          </a>
        )}
        <ModelButtons model={model} />
      </div>
    </li>
  )
})

function badge(model: MeshModel): string {
  if (model.availability !== 'starting') return model.availability
  const fraction = model.here?.progress?.fraction
  return fraction == null ? (model.phase ?? '') : `${model.phase} ${percent(fraction)}`
}

function Hosts({ model }: { model: MeshModel }): JSX.Element {
  const shown = model.hosts.slice(0, 24)
  return (
    <ul class="hosts" aria-label={`Hosts of ${model.name}`}>
      {shown.map((node) => (
        <li key={node.id}>
          <i class={`dot ${node.role} ${node.status}`} />
          {node.here ? 'this node' : node.name}
        </li>
      ))}
      {model.hosts.length > shown.length && <li>and {model.hosts.length - shown.length} more</li>}
    </ul>
  )
}
