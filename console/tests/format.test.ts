import { describe, expect, it } from 'vitest'
import { address, parse } from '../src/address'
import { clientSetups, quoted } from '../src/views/client-setup'
import { awayText, bytes, duration, milliseconds, speed, tokens } from '../src/format'

describe('numbers', () => {
  it('are formatted with units', () => {
    expect([0, 999, 1000, 1.5e9, 150e9, 1e18].map(bytes)).toEqual([
      '0 B',
      '999 B',
      '1.0 kB',
      '1.5 GB',
      '150 GB',
      '1000 PB',
    ])
    expect([512, 4096, 32768, 40000, 131072].map(tokens)).toEqual(['512', '4k', '32k', '40k', '128k'])
    expect([0.00042, 0.0123, 1.5].map(milliseconds)).toEqual(['0.4 ms', '12 ms', '1500 ms'])
    expect([-1, 59.9, 61, 3700, 90_000].map(duration)).toEqual(['0 s', '59 s', '1 min', '1 h 1 min', '1 d 1 h'])
    expect([8.94, 87.3].map(speed)).toEqual(['8.9 tok/s', '87 tok/s'])
  })
})

describe('members that are away', () => {
  it('are named with the time they were seen last, the day only if it was another one', () => {
    const noon = new Date(2026, 10, 29, 12, 0).getTime()
    const member = { id: 'ab12cd34ef56', name: 'cellar', models: ['m'], seen_seconds: 3600 }
    expect(awayText([member], noon)).toMatch(/^cellar last seen 11.00( AM)? \(served m\)$/)
    expect(awayText([{ ...member, name: '', models: [], seen_seconds: 86_400 }], noon)).toMatch(
      /^ab12cd34ef last seen .*28/,
    )
    expect(awayText([member, member, member, member, member], noon)).toMatch(/, 2 more$/)
    expect(awayText([], noon)).toBe('')
  })
})

describe('addresses of views', () => {
  it('are parsed to the view they were made from', () => {
    for (const rest of ['', 'a/b c', 'ümlaut%', 'new/org/repo:Q4'])
      expect(parse(address('chat', rest))).toEqual({ view: 'chat', rest })
  })

  it('fall back to the mesh view', () => {
    expect(parse('')).toEqual({ view: 'mesh', rest: '' })
    expect(parse('#/nowhere/at/all').view).toBe('mesh')
    expect(parse('#/chat/%')).toEqual({ view: 'chat', rest: '%' })
  })
})

describe('commands', () => {
  it('quote any model name', () => {
    expect(quoted('Qwen3-8B:Q4_K_M')).toBe('Qwen3-8B:Q4_K_M')
    expect(quoted("it's; rm -rf ~")).toBe("'it'\\''s; rm -rf ~'")
    for (const program of clientSetups('http://localhost:9337', "a'b $(x)")) {
      for (const [, text] of program.steps) expect(text).not.toMatch(/(^|[^'])\$\(x\)$/)
    }
  })

  it('are valid JSON in JSON files', () => {
    for (const program of clientSetups('http://localhost:9337', 'a"b')) {
      for (const [words, text] of program.steps)
        if (words.includes('.json')) expect(() => JSON.parse(text)).not.toThrow()
    }
  })
})
