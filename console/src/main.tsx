// The page: navigation, the shown view, and the states without a view (connecting, key prompt).

import '@fontsource-variable/geist/wght.css'
import '@fontsource-variable/geist-mono/wght.css'
import './style/base.css'
import './style/parts.css'
import './style/picture.css'
import './style/views.css'
import { signal } from '@preact/signals'
import { render, type JSX } from 'preact'
import { useEffect, useRef } from 'preact/hooks'
import { Icon, type IconName } from './parts/icons'
import { address, route, VIEWS, type View } from './route'
import { access, connection, nodes, start, status } from './state'
import { nextTheme, theme } from './theme'
import { token } from './token'
import { Join } from './views/join'
import { KeyPrompt } from './views/key-prompt'
import { Mesh } from './views/mesh'
import { Models } from './views/models'
import { Nodes } from './views/nodes'
import { Requests } from './views/requests'
import { Blackboard, Chat } from './views/later'
import { counted } from './format'

const NAMES: Record<View, string> = {
  mesh: 'Mesh',
  nodes: 'Nodes',
  models: 'Models',
  requests: 'Requests',
  chat: 'Chat',
  blackboard: 'Blackboard',
  join: 'Join',
}
const VIEW_COMPONENTS: Record<View, () => JSX.Element> = {
  mesh: Mesh,
  nodes: Nodes,
  models: Models,
  requests: Requests,
  chat: Chat,
  blackboard: Blackboard,
  join: Join,
}
const THEME_ICONS = { system: 'auto', light: 'sun', dark: 'moon' } as const satisfies Record<string, IconName>

function Frame(): JSX.Element {
  const { view } = route.value
  const main = useRef<HTMLElement>(null)
  const before = useRef(view)
  useEffect(() => {
    document.title = `${connection.value === 'locked' ? 'Key' : NAMES[view]} · ${status.value?.name ?? 'mesh-llm'}`
    // Keyboard users continue in the new view, not after the link.
    if (before.current !== view) main.current?.focus({ preventScroll: true })
    before.current = view
  }, [view, status.value?.name, connection.value])
  const Body = VIEW_COMPONENTS[view]
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault()
          main.current?.focus()
        }}
      >
        Skip to the content
      </a>
      <SideBar view={view} />
      <main id="main" class={view} tabIndex={-1} ref={main}>
        {connection.value === 'lost' && <ConnectionLost />}
        {connection.value === 'live' && access.value === 'visitor' && <WithoutToken />}
        {connection.value === 'live' && <Notices />}
        {connection.value === 'locked' ? (
          <KeyPrompt />
        ) : status.value === null ? (
          <p class="waiting" role="status">
            Connecting to the daemon …
          </p>
        ) : (
          <Body />
        )}
      </main>
    </>
  )
}

function SideBar({ view }: { view: View }): JSX.Element {
  return (
    <header class="side">
      <a class="brand" href={address('mesh')} aria-label="mesh-llm">
        <Icon name="mesh" size={22} />
        <span>mesh-llm</span>
      </a>
      {connection.value !== 'locked' && (
        <nav aria-label="Views">
          {VIEWS.map((one) => (
            <a key={one} href={address(one)} aria-current={one === view ? 'page' : undefined}>
              <Icon name={one} />
              <span>{NAMES[one]}</span>
            </a>
          ))}
        </nav>
      )}
      <NodeSummary />
    </header>
  )
}

function NodeSummary(): JSX.Element {
  const known = status.value
  const alive = nodes.value.filter((node) => node.status === 'alive' && node.role !== 'backend').length
  return (
    <div class="foot">
      {known !== null && (
        <dl>
          <dt class="unseen">This node</dt>
          <dd class="strong" title={known.name}>
            {known.name}
          </dd>
          <dt class="unseen">Mesh</dt>
          <dd>
            {connection.value === 'lost' ? 'does not answer' : known.mesh === null ? 'no mesh' : counted(alive, 'node')}
          </dd>
          <dt class="unseen">Version</dt>
          <dd>version {known.version}</dd>
          {known.read_only && <dd>read-only</dd>}
        </dl>
      )}
      <button type="button" class="tool" onClick={nextTheme} title={`Colours: ${theme.value}`}>
        <Icon name={THEME_ICONS[theme.value]} />
        <span class="unseen">Colours: {theme.value}. Change</span>
      </button>
    </div>
  )
}

function ConnectionLost(): JSX.Element {
  return (
    <p class="notice worrying" role="alert">
      <Icon name="warning" /> {status.value?.name ?? 'The node'} does not answer. The page shows what was known last,
      and tries again.
    </p>
  )
}

// What the owner should know or do, as the daemon says, until it is hidden in this tab.
const hidden = signal<ReadonlySet<string>>(new Set())

function Notices(): JSX.Element {
  const known = status.value
  const answering = (known?.load ?? []).reduce((sum, load) => sum + load.active, 0)
  const shown = (known?.notices ?? []).filter((text) => !hidden.value.has(text))
  return (
    <>
      {known?.stopping === true && (
        <p class="notice worrying" role="alert">
          <Icon name="warning" /> {known.name} is stopping.
          {answering > 0 && ` It waits for ${counted(answering, 'answer')} to end, some seconds at most.`}
        </p>
      )}
      {shown.map((text) => (
        <p class="notice worrying" role="status" key={text}>
          <Icon name="warning" /> {text}{' '}
          <button
            type="button"
            class="button small"
            onClick={() => {
              hidden.value = new Set(hidden.value).add(text)
            }}
          >
            Hide
          </button>
        </p>
      ))}
    </>
  )
}

function WithoutToken(): JSX.Element {
  return (
    <p class="notice" role="status">
      <Icon name="warning" />{' '}
      {token.value === ''
        ? 'This page was opened without the token of the node, so it is read-only.'
        : 'The node was restarted since this page was opened, so it is read-only.'}{' '}
      On this machine, run <code>mesh-llm console</code> and open the address that it prints.
    </p>
  )
}

start()
render(<Frame />, document.getElementById('app') as HTMLElement)
