// Memory bars: of every node what its models use of what is planned for them; of this node the machine's memory, too.

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
        <ModelMemory node={node} />
        <OwnMemory node={node} machine={machine} />
        {(machine.devices ?? []).map((device) => (
          <Device key={device.name} device={device} />
        ))}
      </div>
    )
  }
  if (node.role === 'backend' || (node.memory === 0 && node.planned === null)) return null
  return (
    <div class="memory">
      <ModelMemory node={node} />
    </div>
  )
}

// The same quantities of this node and of others: what the engine processes take, may come to, and what is left.
function ModelMemory({ node }: { node: MeshNode }): JSX.Element | null {
  if (node.planned === null && node.memory === 0) return null
  const planned = node.planned ?? 0
  const used = node.used ?? 0
  const total = Math.max(1, planned + node.memory, used)
  const models = node.planned === null ? '' : node.used === null ? `at most ${bytes(planned)}` : usedText(used, planned)
  const text = [models, node.memory > 0 ? `${bytes(node.memory)} offered for more` : ''].filter(Boolean).join(', ')
  return (
    <div>
      <p>
        <span>Models</span>
        <span>{text}</span>
      </p>
      <Bar
        label={`Models: ${text}`}
        parts={[
          { fraction: used / total, kind: 'models' },
          { fraction: Math.max(0, planned - used) / total, kind: 'other' },
        ]}
      />
    </div>
  )
}

function usedText(used: number, planned: number): string {
  return `${bytes(used)} now of at most ${bytes(planned)}`
}

function OwnMemory({ node, machine }: { node: MeshNode; machine: MachineStatus }): JSX.Element {
  const total = Math.max(1, machine.memory_total)
  const used = Math.max(0, machine.memory_total - machine.memory_available)
  // Memory of the engine may be on a GPU, or mapped and not counted as used.
  const models = Math.min(node.used ?? 0, used)
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
