// Addresses of views: the part of the page's own address behind `#/`. Pure.

export const VIEWS = ['mesh', 'nodes', 'models', 'requests', 'chat', 'join'] as const
export type View = (typeof VIEWS)[number]

export interface Route {
  view: View
  rest: string // what the view makes of it: a conversation, a model, a request
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
