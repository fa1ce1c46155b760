// Addresses of views: the fragment of the page's address, `#/view/rest`. Pure.

export const VIEWS = ['mesh', 'nodes', 'models', 'requests', 'chat', 'blackboard', 'join'] as const
export type View = (typeof VIEWS)[number]

export interface Route {
  view: View
  rest: string // id of a conversation or a request, name of a model, room or thread of the blackboard
}

export function parse(hash: string): Route {
  const [first = '', ...rest] = hash.replace(/^#\/?/, '').split('/')
  const view = VIEWS.find((one) => one === first) ?? 'mesh'
  let text = rest.join('/')
  try {
    text = decodeURIComponent(text)
  } catch {
    // Not percent-encoded: used as it is.
  }
  return { view, rest: text }
}

export function address(view: View, rest = ''): string {
  return rest === '' ? `#/${view}` : `#/${view}/${encodeURIComponent(rest)}`
}
