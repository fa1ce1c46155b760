import { describe, expect, it } from 'vitest'
import type { LeasePhase, SplitStatus, WorkerShareStatus } from '../src/api'
import { nodesOf } from '../src/mesh/nodes'
import { layersText, pipelinesOf } from '../src/mesh/splits'
import { peer, status } from './fixtures'

const share = (
  node: string,
  first: number,
  layers: number,
  phase: LeasePhase | null = 'committed',
): WorkerShareStatus => {
  return {
    node,
    name: '',
    first,
    layers,
    memory: 100,
    memory_used: 80,
    phase,
    detail: '',
    rtt: null,
    transport: null,
    sent: 3,
    received: 4,
    rate: 0,
  }
}
const split: SplitStatus = {
  model: 'm',
  session: '',
  generation: 1,
  committed: true,
  reason: '',
  forecast: null,
  measured: null,
  corrected: false,
  deviation: '',
  considered: [],
  shares: [share('b', 20, 10), share('me', 0, 12, null), share('a', 12, 8)],
}

describe('pipelinesOf', () => {
  it('lists the nodes in the order of the layers', () => {
    expect(pipelinesOf(status([], { splits: [split] }))).toEqual([
      { model: 'm', committed: true, nodeIds: ['me', 'a', 'b'] },
    ])
  })

  it('makes nodes with a share workers', () => {
    const found = nodesOf(status([peer('a'), peer('b'), peer('c')], { splits: [split] }), 1)
    expect(found.map((node) => [node.id, node.role, node.shares.map(layersText)])).toEqual([
      ['me', 'worker', ['layers 0 to 11']],
      ['a', 'worker', ['layers 12 to 19']],
      ['b', 'worker', ['layers 20 to 29']],
      ['c', 'standby', []],
    ])
    expect(found[1]?.shares[0]?.traffic).toBe(7)
  })

  it("shows only this node's share of the split of another host", () => {
    const lease = {
      model: 'm',
      host: 'a',
      host_name: 'a',
      session: '',
      generation: 1,
      phase: 'ready' as const,
      detail: '',
      first: 5,
      layers: 1,
      memory: 9,
      memory_used: 7,
    }
    const known = status([peer('a')], { worker_lease: lease })
    expect(pipelinesOf(known)).toEqual([{ model: 'm', committed: false, nodeIds: ['a', 'me'] }])
    expect(nodesOf(known, 1)[0]).toMatchObject({
      role: 'worker',
      shares: [{ host: 'a', traffic: null }],
      planned: 9,
      used: 7,
    })
    expect(layersText(lease)).toBe('layer 5')
  })

  it('is empty without shares', () => {
    expect(pipelinesOf(status([], { splits: [{ ...split, shares: [] }] }))).toEqual([])
    expect(layersText({ first: 0, layers: 0 })).toBe('no layers')
  })
})
