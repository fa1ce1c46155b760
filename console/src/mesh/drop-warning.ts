// Whether a drop takes the last host of a wanted model. Pure.

import type { NodeStatus } from '../api'
import { counted } from '../format'
import type { MeshModel } from './models'

// What to say before this node drops `model`; empty if another node serves it, or it is not wanted.
export function dropWarning(model: MeshModel, status: NodeStatus): string {
  const others = model.hosts.filter((node) => !node.here && node.status === 'alive')
  const { here, demand, active, waiting } = model
  if (others.length > 0 || here === null || !(here.phase === 'serving' || here.phase === 'available')) return ''
  // A model that was taken for the demand is no wish of this node's own.
  const plan = status.mesh?.plans.find((one) => one.node === status.mesh?.node && one.model === model.name)
  const own = plan?.act === 'last host' || plan?.act === 'stays' ? 0 : 1
  const wanted = [
    active + waiting > 0 ? `${counted(active + waiting, 'request')} now` : '',
    demand !== null && demand.requests > 0 ? `${counted(demand.requests, 'request')} lately` : '',
    demand !== null && demand.wishes > own ? `${counted(demand.wishes - own, 'node')} asking for it` : '',
  ].filter(Boolean)
  if (wanted.length === 0) return ''
  return `No other node serves ${model.name}, which is wanted (${wanted.join(', ')}). Callers get an error until a node serves it again.`
}
