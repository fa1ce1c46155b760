import { describe, expect, it } from 'vitest'
import type { NodeStatus } from '../src/api'
import { dropWarning } from '../src/mesh/drop-warning'
import { modelsOf } from '../src/mesh/models'
import { nodesOf } from '../src/mesh/nodes'
import { demand, model, peer, serves, status } from './fixtures'

type Mesh = NonNullable<NodeStatus['mesh']>

function warning(mesh: Partial<Mesh>, phase: 'serving' | 'available' | 'loading' = 'serving'): string {
  const plain = status(mesh.peers ?? [], { models: [model('m', phase)] })
  const known = { ...plain, mesh: { ...plain.mesh!, ...mesh } }
  const found = modelsOf(known, nodesOf(known, 1)).find((one) => one.name === 'm')
  return dropWarning(found!, known)
}

describe('dropWarning', () => {
  it('is for the last host of a wanted model only', () => {
    const wanted = [demand('m', { requests: 16, hosts: 1 })]
    expect(warning({ demand: wanted })).toContain('No other node serves m, which is wanted (16 requests lately).')
    expect(warning({ demand: wanted }, 'available')).not.toBe('')
    expect(warning({ demand: wanted }, 'loading')).toBe('')
    expect(warning({ demand: wanted, peers: [peer('a', { serves: [serves('m')] })] })).toBe('')
    const silent = peer('a', { serves: [serves('m')], status: 'suspect' })
    expect(warning({ demand: wanted, peers: [silent] })).not.toBe('')
    expect(warning({ demand: [demand('other')] })).toBe('')
    expect(warning({})).toBe('')
  })

  it('does not count the wish of this node itself', () => {
    const wishes = (count: number): Mesh['demand'] => [demand('m', { requests: 0, wishes: count })]
    expect(warning({ demand: wishes(1) })).toBe('')
    expect(warning({ demand: wishes(2) })).toContain('1 node asking for it')
    const plans: Mesh['plans'] = [{ node: 'me', name: 'here', act: 'last host', model: 'm', seconds: null, text: '' }]
    expect(warning({ demand: wishes(1), plans })).toContain('1 node asking for it')
  })
})
