import { describe, expect, it } from 'vitest'
import { placeElsewhere, restartWith, startElsewhere } from '../src/views/commands'

const start = {
  program: 'MESH_LLM_HOME=/a /src/scripts/mesh-llm',
  command: 'MESH_LLM_HOME=/a /src/scripts/mesh-llm --model m',
  elsewhere: 'scripts/mesh-llm',
}

describe('commands', () => {
  it('are built from the start of the node', () => {
    expect(restartWith(start, '--listen-all')).toBe(
      'MESH_LLM_HOME=/a /src/scripts/mesh-llm stop && MESH_LLM_HOME=/a /src/scripts/mesh-llm --model m --listen-all',
    )
    expect(startElsewhere(start, '--join -')).toBe('scripts/mesh-llm --join -')
    expect(placeElsewhere(start)).toContain('in its folder of mesh-llm')
  })

  it('are those of an installed program if the start is not known', () => {
    expect(restartWith(null, '--listen-all')).toBe('mesh-llm stop && mesh-llm --listen-all')
    expect(startElsewhere(null, '--join -')).toBe('mesh-llm --join -')
    expect(placeElsewhere(null)).toBe('On the other machine:')
  })
})
