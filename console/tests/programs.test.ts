import { describe, expect, test } from 'vitest'
import { programs } from '../src/views/programs'

const text = (needed: string | null): Record<string, string> =>
  Object.fromEntries(programs('http://box:9337', 'm', needed).map((one) => [one.name, one.steps.flat().join('\n')]))

describe('programs', () => {
  test('of this machine take any key', () => {
    const found = text(null)
    expect(found['curl']).not.toContain('Authorization')
    expect(found['goose']).toContain('OPENAI_API_KEY=none')
    expect(found['opencode']).not.toContain('apiKey')
  })

  test('of other machines are told where the key belongs', () => {
    for (const [name, steps] of Object.entries(text('KEY'))) expect(steps, name).toMatch(/\bKEY\b/)
    expect(text('KEY')['curl']).toContain("-H 'Authorization: Bearer KEY' -d")
  })
})
