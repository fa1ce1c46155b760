// One node in full: what it is, what it carries, how it is reached.

import type { ComponentChildren, JSX } from 'preact'
import { Badge, type Tone } from '../parts/basics'
import { Icon } from '../parts/icons'
import { linkWords, standing, type Carried, type MeshNode } from '../mesh/nodes'
import { layersOf, type Part } from '../mesh/splits'
import { address } from '../route'
import { status } from '../state'
import { bytes, duration, milliseconds, speed, tokens } from '../words'
import { Machine } from './memory'

const STATUS_TONES = { alive: 'good', suspect: 'worrying', unverified: 'plain', dead: 'bad', left: 'plain' } as const

export function toneOf(node: MeshNode): Tone {
  return node.status === 'alive' && node.role !== 'host' && node.role !== 'backend'
    ? 'plain'
    : STATUS_TONES[node.status]
}

export function Details({ node, close }: { node: MeshNode; close: () => void }): JSX.Element {
  const mesh = status.value?.mesh
  const onDisk = node.onDisk.filter((name) => !Object.hasOwn(node.aliases, name))
  return (
    <aside class="details" aria-label={`Node ${node.name}`}>
      <header>
        <div>
          <h2>{node.name}</h2>
          <p class="id">
            {node.here ? 'this node' : node.role === 'backend' ? 'backend of this node' : node.id.slice(0, 10)}
          </p>
        </div>
        <button type="button" class="tool" onClick={close} title="Close">
          <Icon name="close" />
          <span class="unseen">Close</span>
        </button>
      </header>
      <p class="badges">
        <Badge tone={toneOf(node)}>{standing(node)}</Badge>
      </p>
      {node.reason !== '' && <p class="reason">{node.reason}</p>}
      <Machine node={node} />
      {node.models.length > 0 && (
        <section>
          <h3>Models</h3>
          <ul class="carried">
            {node.models.slice(0, 40).map((model) => (
              <Model key={model.name} model={model} />
            ))}
          </ul>
        </section>
      )}
      {node.parts.length > 0 && (
        <section>
          <h3>Parts of split models</h3>
          <ul class="carried">
            {node.parts.map((part) => (
              <li key={part.model}>
                <a href={address('models', part.model)}>{part.model}</a>
                <small>{partWords(part)}</small>
              </li>
            ))}
          </ul>
        </section>
      )}
      <dl class="facts">
        {!node.here && node.role !== 'backend' && (
          <Fact name="Link">
            {node.linked ? linkWords(node) || 'QUIC, no request yet' : 'none; known through others'}
          </Fact>
        )}
        {node.here && mesh != null && mesh.mesh !== '' && (
          <Fact name="Mesh">
            <span class="mono">{mesh.mesh.slice(0, 10)}</span>
          </Fact>
        )}
        {node.rtt !== null && <Fact name="Round trip">{milliseconds(node.rtt)}</Fact>}
        {node.since !== null && <Fact name="In this state for">{duration(Date.now() / 1000 - node.since)}</Fact>}
        {node.version !== '' && <Fact name="Version">{node.version}</Fact>}
        {node.wants.length > 0 && <Fact name="Wants">{node.wants.join(', ')}</Fact>}
        {onDisk.length > 0 && <Fact name="On disk">{onDisk.join(', ')}</Fact>}
        {node.addresses.length > 0 && (
          <Fact name="Addresses">
            <span class="mono">{node.addresses.join(' ')}</span>
          </Fact>
        )}
      </dl>
    </aside>
  )
}

function partWords(part: Part): string {
  const traffic = part.traffic === null || part.traffic === 0 ? '' : `${bytes(part.traffic)} through the tunnel`
  const state = part.phase === null || part.phase === 'committed' ? '' : part.detail || part.phase
  return [layersOf(part), bytes(part.memory), state, traffic].filter(Boolean).join(' · ')
}

function Fact({ name, children }: { name: string; children: ComponentChildren }): JSX.Element {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  )
}

function Model({ model }: { model: Carried }): JSX.Element {
  const facts = [
    model.context > 0 ? `${tokens(model.context)} context` : '',
    model.slots > 0 ? `${model.active} of ${model.slots} busy` : '',
    model.waiting > 0 ? `${model.waiting} waiting` : '',
    model.memory > 0 ? bytes(model.memory) : '',
    model.speed !== null ? speed(model.speed) : '',
  ].filter(Boolean)
  return (
    <li>
      <a href={address('models', model.name)}>{model.name}</a>
      <small>{model.phase === 'serving' ? facts.join(' · ') : model.phase}</small>
    </li>
  )
}
