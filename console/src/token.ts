// The token of the daemon's run, which makes this page the owner's: it may make invites, show the key and see the whole
// status. `mesh-llm console` prints the address that holds it; the daemon makes a new one at each start.
//
// It is stored for this address (localStorage), so that new tabs have it until the daemon ends.

import { signal } from '@preact/signals'

const NAME = 'token'

// A browser does not send the fragment of an address to servers.
const HASH_PREFIX = '#token='

export const TOKEN_HEADER = 'x-mesh-llm-token'

export const token = signal('')

export function setToken(text: string): void {
  token.value = text
  try {
    localStorage.setItem(NAME, text)
  } catch {
    // Storage is disabled: the token lasts as long as the page.
  }
}

// The token in the fragment of an address, or null. It is a part of an HTTP header: letters, digits, "-" and "_".
export function tokenFromHash(hash: string): string | null {
  const text = hash.startsWith(HASH_PREFIX) ? hash.slice(HASH_PREFIX.length) : ''
  return /^[\w-]{1,200}$/.test(text) ? text : null
}

// Takes the token out of the page's own address, and out of the browser's history. Returns whether there was one.
export function takeTokenFromAddress(): boolean {
  const given = tokenFromHash(location.hash)
  if (given === null) return false
  history.replaceState(null, '', location.pathname)
  setToken(given)
  return true
}

// Whether a host name of the page's address is this machine, where the token is valid.
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host.endsWith('.localhost') || host === '[::1]' || /^127(\.\d{1,3}){3}$/.test(host)
}

function storedToken(): string {
  try {
    return localStorage.getItem(NAME) ?? ''
  } catch {
    return ''
  }
}

token.value = storedToken()
