// Details of one node: status, memory, models, shares of split models, link.

import type { ComponentChildren, JSX } from 'preact'
import { Badge, type Tone } from '../parts/basics'
import { Icon } from '../parts/icons'
import { transportText, statusText, type NodeModel, type MeshNode } from '../mesh/nodes'
import { layersText, type LayerShare } from '../mesh/splits'
import { address } from '../route'
import { status } from '../state'
import { bytes, duration, milliseconds, speed, tokens } from '../format'
import { Machine } from './memory'

const STATUS_TONES = { alive: 'good', suspect: 'worrying', unverified: 'plain', dead: 'bad', left: 'plain' } as const

export function toneOf(node: MeshNode): Tone {
  return node.status === 'alive' && node.role !== 'host' && node.role !== 'backend'
    ? 'plain'
    : STATUS_TONES[node.status]
}

export function NodeDetails({ node, close }: { node: MeshNode; close: () => void }): JSX.Element {
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
        <Badge tone={toneOf(node)}>{statusText(node)}</Badge>
        {!node.owned && <Badge tone="worrying">another member</Badge>}
      </p>
      {node.reason !== '' && <p class="reason">{node.reason}</p>}
      {!node.owned && node.role === 'host' && <p class="quiet">It reads the prompts that it answers.</p>}
      <Machine node={node} />
      {node.models.length > 0 && (
        <section>
          <h3>Models</h3>
          <ul class="node-models">
            {node.models.slice(0, 40).map((model) => (
              <Model key={model.name} model={model} />
            ))}
          </ul>
        </section>
      )}
      {node.shares.length > 0 && (
        <section>
          <h3>Layers of split models</h3>
          <ul class="node-models">
            {node.shares.map((share) => (
              <li key={share.model}>
                <a href={address('models', share.model)}>{share.model}</a>
                <small>{shareText(share)}</small>
              </li>
            ))}
          </ul>
        </section>
      )}
      <dl class="facts">
        {!node.here && node.role !== 'backend' && (
          <Fact name="Link">
            {node.linked ? transportText(node) || 'connected, no request yet' : 'none (known from other nodes)'}
          </Fact>
        )}
        {node.here && mesh != null && mesh.mesh !== '' && (
          <Fact name="Mesh">
            <span class="mono">{mesh.mesh.slice(0, 10)}</span>
          </Fact>
        )}
        {node.rtt !== null && <Fact name="Round trip">{milliseconds(node.rtt)}</Fact>}
        {node.since !== null && <Fact name="In this status for">{duration(Date.now() / 1000 - node.since)}</Fact>}
        {node.next !== null && <Fact name="Next">{node.next.text}</Fact>}
        {node.version !== '' && <Fact name="Version">{node.version}</Fact>}
        {node.wants.length > 0 && <Fact name="Requested models">{node.wants.join(', ')}</Fact>}
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

function shareText(share: LayerShare): string {
  const traffic = share.traffic === null || share.traffic === 0 ? '' : `${bytes(share.traffic)} transferred`
  const state = share.phase === null || share.phase === 'committed' ? '' : share.detail || share.phase
  const used = share.used === null ? '' : `${bytes(share.used)} now`
  return [layersText(share), `at most ${bytes(share.memory)}`, used, state, traffic].filter(Boolean).join(' · ')
}

function Fact({ name, children }: { name: string; children: ComponentChildren }): JSX.Element {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  )
}

function Model({ model }: { model: NodeModel }): JSX.Element {
  const facts = [
    model.context > 0 ? `${tokens(model.context)} context` : '',
    model.slots > 0 ? `${model.active} of ${model.slots} busy` : '',
    model.waiting > 0 ? `${model.waiting} waiting` : '',
    model.planned === null ? '' : `at most ${bytes(model.planned)}`,
    model.used === null ? '' : `${bytes(model.used)} now`,
    model.planned === null && model.size > 0 ? `file of ${bytes(model.size)}` : '',
    model.speed !== null ? speed(model.speed) : '',
  ].filter(Boolean)
  return (
    <li>
      <a href={address('models', model.name)}>{model.name}</a>
      <small>{model.phase === 'serving' ? facts.join(' · ') : model.phase}</small>
    </li>
  )
}
