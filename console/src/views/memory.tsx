// Memory bars: of this node, models, other use and free memory; of other nodes, the offered memory.

import type { JSX } from 'preact'
import type { DeviceStatus, MachineStatus } from '../api'
import type { MeshNode } from '../mesh/nodes'
import { Bar } from '../parts/basics'
import { status } from '../state'
import { bytes } from '../format'

export function Machine({ node }: { node: MeshNode }): JSX.Element | null {
  // Only this node's details read the status, so that the others are not rendered at each change.
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
  if (node.role === 'backend' || (node.memory === 0 && usedByModels(node) === 0)) return null
  return (
    <div class="memory">
      <OfferedMemory node={node} />
    </div>
  )
}

function usedByModels(node: MeshNode): number {
  const models = node.models.reduce((sum, model) => sum + (model.phase === 'serving' ? model.memory : 0), 0)
  // The host's own share is part of its engine's memory.
  return node.shares.reduce((sum, share) => sum + (share.phase === null ? 0 : share.memory), models)
}

function OwnMemory({ node, machine }: { node: MeshNode; machine: MachineStatus }): JSX.Element {
  const total = Math.max(1, machine.memory_total)
  const used = Math.max(0, machine.memory_total - machine.memory_available)
  // Memory of the engine may be on a GPU, or mapped and not counted as used.
  const models = Math.min(usedByModels(node), used)
  const text = `${bytes(machine.memory_available)} free of ${bytes(machine.memory_total)}`
  return (
    <div>
      <p>
        <span>Memory{machine.memory_limited ? ' (container limit)' : ''}</span>
        <span>{text}</span>
      </p>
      <Bar
        label={`Memory: models use ${bytes(models)}, other programs ${bytes(used - models)}; ${text}`}
        parts={[
          { fraction: models / total, kind: 'models' },
          { fraction: (used - models) / total, kind: 'other' },
        ]}
      />
    </div>
  )
}

function Device({ device }: { device: DeviceStatus }): JSX.Element {
  const used = device.memory_total - device.memory_free
  const own = device.memory_total > 0 && !device.shared
  const text = own ? `${bytes(device.memory_free)} free of ${bytes(device.memory_total)}` : 'shares main memory'
  const name = device.description || device.name
  return (
    <div>
      <p>
        <span>
          {name}
          {device.used ? '' : ' (not used)'}
        </span>
        <span>{text}</span>
      </p>
      {own && (
        <Bar
          label={`${name}: ${text}`}
          parts={[{ fraction: used / device.memory_total, kind: device.used ? 'models' : 'other' }]}
        />
      )}
    </div>
  )
}

function OfferedMemory({ node }: { node: MeshNode }): JSX.Element {
  const models = usedByModels(node)
  const total = Math.max(node.memory, models, 1)
  const text = node.memory > 0 ? `${bytes(models)} of ${bytes(node.memory)}` : bytes(models)
  return (
    <div>
      <p>
        <span>{node.memory > 0 ? 'Offered memory' : 'Models'}</span>
        <span>{text}</span>
      </p>
      <Bar
        label={`Models use ${text}${node.memory > 0 ? ' offered' : ''}`}
        parts={[{ fraction: models / total, kind: 'models' }]}
      />
    </div>
  )
}
