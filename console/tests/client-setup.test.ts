import { describe, expect, test } from 'vitest'
import { clientSetups } from '../src/views/client-setup'

const text = (needed: string | null): Record<string, string> =>
  Object.fromEntries(clientSetups('http://box:9337', 'm', needed).map((one) => [one.name, one.steps.flat().join('\n')]))

describe('clientSetups', () => {
  test('needs no key on this machine', () => {
    const found = text(null)
    expect(found['curl']).not.toContain('Authorization')
    expect(found['goose']).toContain('OPENAI_API_KEY=none')
    expect(found['opencode']).not.toContain('apiKey')
  })

  test('contains the key for other machines', () => {
    for (const [name, steps] of Object.entries(text('KEY'))) expect(steps, name).toMatch(/\bKEY\b/)
    expect(text('KEY')['curl']).toContain("-H 'Authorization: Bearer KEY' -d")
  })
})
