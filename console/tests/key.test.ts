import { describe, expect, test } from 'vitest'
import { headers, keyFromHash, setKey, urlWithKey } from '../src/key'

describe('the key', () => {
  test('is found in the address that urlWithKey makes', () => {
    for (const key of ['plain-Key_1', 'with / and # and %', 'sésame']) {
      expect(keyFromHash(new URL(urlWithKey('http://192.0.2.7:3131', key)).hash)).toBe(key)
    }
  })

  test('is not found in any other address', () => {
    for (const hash of ['', '#', '#/chat', '#/key=x', '#key=%', '#monkey=x']) expect(keyFromHash(hash)).toBeNull()
  })

  test('is sent as UTF-8 bytes, and not sent if there is none', () => {
    expect(headers()).toEqual({})
    setKey(' sésame ')
    expect(headers()).toEqual({ authorization: 'Bearer s\u00c3\u00a9same' })
    setKey('')
    expect(headers()).toEqual({})
  })
})
