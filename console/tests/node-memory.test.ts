// Memory of nodes: what their engine processes take and may come to.

import { describe, expect, it } from 'vitest'
import { nodesOf } from '../src/mesh/nodes'
import { model, peer, serves, status } from './fixtures'

describe('memory', () => {
  const engine = {
    pid: 1,
    socket: '',
    slots: 1,
    context_length: 1,
    memory: 3_300_000_000,
    memory_used: 2_460_000_000,
    memory_parts: { 'prompt cache': 2_350_000_000 },
    placement_text: '',
    serving_seconds: 1,
    calls_tools: null,
    tools: true,
    speculation: {
      kind: 'none' as const,
      draft_model: '',
      draft_tokens: 0,
      accepted_tokens: 0,
      acceptance: null,
      reason: '',
    },
  }

  it('is the same quantity for this node and for others', () => {
    const own = model('m', 'serving', { engine })
    const other = peer('a', { serves: [serves('m')], memory_planned: 3_300_000_000, memory_used: 2_500_000_000 })
    const [here, there] = nodesOf(status([other], { models: [own] }), 1)
    expect([here?.planned, here?.used]).toEqual([3_300_000_000, 2_460_000_000])
    expect([there?.planned, there?.used]).toEqual([3_300_000_000, 2_500_000_000])
    // The size of the file is no memory.
    expect(there?.models[0]).toMatchObject({ planned: null, used: null, size: 1000 })
  })
})
