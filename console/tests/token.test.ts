import { describe, expect, test } from 'vitest'
import { consoleHeaders, headers } from '../src/key'
import { isLoopback, setToken, tokenFromHash } from '../src/token'

describe('the token of the run', () => {
  test('is found in the fragment that mesh-llm console prints, and in no other', () => {
    expect(tokenFromHash('#token=Ab_9-x')).toBe('Ab_9-x')
    for (const hash of [
      '',
      '#',
      '#token=',
      '#/token=x',
      '#key=x',
      '#token=a b',
      '#token=%0d',
      `#token=${'x'.repeat(201)}`,
    ])
      expect(tokenFromHash(hash)).toBeNull()
  })

  test('is sent to the console and not to the API', () => {
    expect(consoleHeaders()).toEqual({})
    setToken('Ab_9-x')
    expect(consoleHeaders()).toEqual({ 'x-mesh-llm-token': 'Ab_9-x' })
    expect(headers()).toEqual({})
    setToken('')
  })

  test('is valid on this machine only', () => {
    for (const host of ['localhost', 'a.localhost', '127.0.0.1', '[::1]']) expect(isLoopback(host)).toBe(true)
    for (const host of ['192.0.2.7', '127.evil.com', 'localhost.evil.com', 'box.lan'])
      expect(isLoopback(host)).toBe(false)
  })
})
