// Memory as bars: what models take of it, what else does, what is free. Of other nodes, what they offer.

import type { JSX } from 'preact'
import type { DeviceStatus, MachineStatus } from '../api'
import type { MeshNode } from '../mesh/nodes'
import { Bar } from '../parts/basics'
import { status } from '../state'
import { bytes } from '../words'

export function Machine({ node }: { node: MeshNode }): JSX.Element | null {
  // Only this node's reads the status: the others need not be drawn anew whenever anything changes.
  const machine = node.here ? (status.value?.machine ?? null) : null
  if (machine !== null) {
    return (
      <div class="memory">
        <OwnMemory node={node} machine={machine} />
        {(machine.devices ?? []).map((device) => (
          <Device key={device.name} device={device} />
        ))}
      </div>
    )
  }
  if (node.role === 'backend' || (node.memory === 0 && taken(node) === 0)) return null
  return (
    <div class="memory">
      <OfferedMemory node={node} />
    </div>
  )
}

function taken(node: MeshNode): number {
  const models = node.models.reduce((sum, model) => sum + (model.phase === 'serving' ? model.memory : 0), 0)
  // A host's own part is in what its engine takes.
  return node.parts.reduce((sum, part) => sum + (part.phase === null ? 0 : part.memory), models)
}

function OwnMemory({ node, machine }: { node: MeshNode; machine: MachineStatus }): JSX.Element {
  const total = Math.max(1, machine.memory_total)
  const used = Math.max(0, machine.memory_total - machine.memory_available)
  // What the engine needs may lie on a graphics card, or be mapped and not counted as used.
  const models = Math.min(taken(node), used)
  const words = `${bytes(machine.memory_available)} free of ${bytes(machine.memory_total)}`
  return (
    <div>
      <p>
        <span>Memory{machine.memory_limited ? ' (of its container)' : ''}</span>
        <span>{words}</span>
      </p>
      <Bar
        label={`Memory: models take ${bytes(models)}, everything else ${bytes(used - models)}; ${words}`}
        parts={[
          { fraction: models / total, kind: 'models' },
          { fraction: (used - models) / total, kind: 'other' },
        ]}
      />
    </div>
  )
}

function Device({ device }: { device: DeviceStatus }): JSX.Element {
  const taken = device.memory_total - device.memory_free
  const own = device.memory_total > 0 && !device.shared
  const words = own ? `${bytes(device.memory_free)} free of ${bytes(device.memory_total)}` : 'shares the memory'
  const name = device.description || device.name
  return (
    <div>
      <p>
        <span>
          {name}
          {device.used ? '' : ' (not used)'}
        </span>
        <span>{words}</span>
      </p>
      {own && (
        <Bar
          label={`${name}: ${words}`}
          parts={[{ fraction: taken / device.memory_total, kind: device.used ? 'models' : 'other' }]}
        />
      )}
    </div>
  )
}

function OfferedMemory({ node }: { node: MeshNode }): JSX.Element {
  const models = taken(node)
  const total = Math.max(node.memory, models, 1)
  const words = node.memory > 0 ? `${bytes(models)} of ${bytes(node.memory)}` : bytes(models)
  return (
    <div>
      <p>
        <span>{node.memory > 0 ? 'Offered memory' : 'Models'}</span>
        <span>{words}</span>
      </p>
      <Bar
        label={`Models take ${words}${node.memory > 0 ? ' offered' : ''}`}
        parts={[{ fraction: models / total, kind: 'models' }]}
      />
    </div>
  )
}
