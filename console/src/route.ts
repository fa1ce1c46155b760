// The shown view follows the page's address, so that views can be linked and the back button works.

import { signal } from '@preact/signals'
import { address, parse, type Route, type View } from './address'

export { address, VIEWS, type View } from './address'

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
