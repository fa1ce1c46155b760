import { describe, expect, test } from 'vitest'
import { headers, keyIn, use, withKey } from '../src/key'

describe('the key', () => {
  test('comes back out of the address it went into', () => {
    for (const key of ['plain-Key_1', 'with / and # and %', 'sésame']) {
      expect(keyIn(new URL(withKey('http://192.0.2.7:3131', key)).hash)).toBe(key)
    }
  })

  test('is in no other address', () => {
    for (const hash of ['', '#', '#/chat', '#/key=x', '#key=%', '#monkey=x']) expect(keyIn(hash)).toBeNull()
  })

  test('goes along as bytes, and not at all where there is none', () => {
    expect(headers()).toEqual({})
    use(' sésame ')
    expect(headers()).toEqual({ authorization: 'Bearer s\u00c3\u00a9same' })
    use('')
    expect(headers()).toEqual({})
  })
})
