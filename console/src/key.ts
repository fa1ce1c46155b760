// The key with which a page on another device looks and asks. On the node's own machine none is asked for.
//
// Law: it is kept for this tab alone (sessionStorage). Whatever is kept for good for an address of plain HTTP can be
// read by whoever has that address in another network; the browser's own password manager keeps it better, and may.

import { signal } from '@preact/signals'

const NAME = 'key'

// Behind `#` it goes nowhere: not to the daemon, and not into what a browser tells others about where it came from.
const IN_ADDRESS = '#key='

export const key = signal('')

export function use(text: string): void {
  key.value = text.trim()
  try {
    if (key.value === '') sessionStorage.removeItem(NAME)
    else sessionStorage.setItem(NAME, key.value)
  } catch {
    // A browser that keeps nothing has it as long as the page is there.
  }
}

// What every request to the daemon takes along. Headers are bytes: whatever is not ASCII goes as UTF-8.
export function headers(): Record<string, string> {
  if (key.value === '') return {}
  const bytes = new TextEncoder().encode(key.value)
  return { authorization: `Bearer ${String.fromCharCode(...bytes)}` }
}

// The address that brings the key along, to be opened on another device.
export function withKey(url: string, text: string): string {
  return `${url}/${IN_ADDRESS}${encodeURIComponent(text)}`
}

// The key in an address, or null.
export function keyIn(hash: string): string | null {
  if (!hash.startsWith(IN_ADDRESS)) return null
  try {
    return decodeURIComponent(hash.slice(IN_ADDRESS.length))
  } catch {
    return null
  }
}

// Takes the key out of the page's own address, and out of the browser's history with it.
export function take(): boolean {
  const given = keyIn(location.hash)
  if (given === null) return false
  history.replaceState(null, '', location.pathname)
  use(given)
  return true
}

function kept(): string {
  try {
    return sessionStorage.getItem(NAME) ?? ''
  } catch {
    return ''
  }
}

key.value = kept()
