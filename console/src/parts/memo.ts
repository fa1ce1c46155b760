// A component that is rendered again only if one of its properties changes.

import { Component, type ComponentChildren, type FunctionComponent } from 'preact'

export function memo<P extends object>(Part: FunctionComponent<P>): new () => Component<P> {
  return class Memo extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>): boolean {
      const keys = Object.keys(next) as (keyof P)[]
      return keys.some((key) => next[key] !== this.props[key])
    }

    override render(props: P): ComponentChildren {
      return Part(props)
    }
  }
}
