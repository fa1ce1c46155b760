// The API key that a page on another device sends. On the node's own machine no key is required.
//
// The key is stored for this tab only (sessionStorage): what is stored for an address of plain HTTP can be read by any
// server with the same address in another network.

import { signal } from '@preact/signals'
import type { ErrorAnswer, KeyAnswer } from './api'
import { token, TOKEN_HEADER } from './token'

const NAME = 'key'

// A browser does not send the fragment of an address to servers.
const HASH_PREFIX = '#key='

export const key = signal('')

export function setKey(text: string): void {
  key.value = text.trim()
  try {
    if (key.value === '') sessionStorage.removeItem(NAME)
    else sessionStorage.setItem(NAME, key.value)
  } catch {
    // Storage is disabled: the key lasts as long as the page.
  }
}

// The headers of every request to the API. Headers are bytes: text that is not ASCII is sent as UTF-8.
export function headers(): Record<string, string> {
  if (key.value === '') return {}
  const bytes = new TextEncoder().encode(key.value)
  return { authorization: `Bearer ${String.fromCharCode(...bytes)}` }
}

// The headers of every request to the console: the key, and the token of the run.
export function consoleHeaders(): Record<string, string> {
  return token.value === '' ? headers() : { ...headers(), [TOKEN_HEADER]: token.value }
}

// The node's API key. Only the owner's page gets it. Throws an Error with a message for the user.
export async function fetchKey(): Promise<string> {
  const answer = await fetch('/api/key', { method: 'POST', headers: consoleHeaders() })
  if (!answer.ok) throw new Error(((await answer.json()) as ErrorAnswer).error.message)
  return ((await answer.json()) as KeyAnswer).key
}

// Takes the node's key for this tab. Returns whether there is one that this tab did not have.
export async function takeOwnKey(): Promise<boolean> {
  try {
    const found = await fetchKey()
    if (found === key.value) return false
    setKey(found)
    return true
  } catch {
    return false
  }
}

// The page's address with the key in it, for another device.
export function urlWithKey(url: string, text: string): string {
  return `${url}/${HASH_PREFIX}${encodeURIComponent(text)}`
}

// The key in the fragment of an address, or null.
export function keyFromHash(hash: string): string | null {
  if (!hash.startsWith(HASH_PREFIX)) return null
  try {
    return decodeURIComponent(hash.slice(HASH_PREFIX.length))
  } catch {
    return null
  }
}

// Takes the key out of the page's own address, and out of the browser's history. Returns whether there was one.
export function takeKeyFromAddress(): boolean {
  const given = keyFromHash(location.hash)
  if (given === null) return false
  history.replaceState(null, '', location.pathname)
  setKey(given)
  return true
}

function storedKey(): string {
  try {
    return sessionStorage.getItem(NAME) ?? ''
  } catch {
    return ''
  }
}

key.value = storedKey()
