// Which view is shown: the part of the address behind `#/`, so that a view can be linked to and the back button works.

import { signal } from '@preact/signals'

export const VIEWS = ['mesh', 'nodes', 'models', 'chat', 'join'] as const
export type View = (typeof VIEWS)[number]

export interface Route {
  view: View
  rest: string // what the view makes of it: a conversation, a model, a node
}

export function parse(hash: string): Route {
  const [first = '', ...rest] = hash.replace(/^#\/?/, '').split('/')
  const view = VIEWS.find((one) => one === first) ?? 'mesh'
  let text = rest.join('/')
  try {
    text = decodeURIComponent(text)
  } catch {
    // A lone percent sign that somebody typed stays what it is.
  }
  return { view, rest: text }
}

export function address(view: View, rest = ''): string {
  return rest === '' ? `#/${view}` : `#/${view}/${encodeURIComponent(rest)}`
}

export const route = signal<Route>(parse(location.hash))

export function go(view: View, rest = '', { replace = false } = {}): void {
  if (replace) {
    history.replaceState(null, '', address(view, rest))
    route.value = { view, rest }
  } else {
    location.hash = address(view, rest)
  }
}

addEventListener('hashchange', () => (route.value = parse(location.hash)))
