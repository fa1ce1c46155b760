// The Blackboard view: rooms, claims, the post box, filters, and threads.

import type { JSX } from 'preact'
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import type { BoardPost } from '../api'
import { counted } from '../format'
import { Command, Empty } from '../parts/basics'
import { Icon } from '../parts/icons'
import { address, route } from '../route'
import { access, connection, status } from '../state'
import { keepUnchanged } from '../structural-sharing'
import '../style/board.css'
import {
  EVERYTHING,
  FEW,
  MANY,
  erased,
  facts,
  more,
  opened,
  posts,
  problem,
  rooms,
  searchAgain,
  searchIsOld,
  show,
  showMany,
  shownFilter,
  watchBoard,
  type BoardFilter,
} from './board'
import { ClaimsStrip } from './claims-strip'
import { roomName } from './message'
import { KINDS, PostBox } from './post-box'
import { cleanedName } from './text'
import { ThreadItem } from './thread-item'
import { inOrder, threadsOf, type Thread } from './threads'

const TYPING_MS = 400
// Threads that are rendered at once.
const SHOWN = 40
const SHOWN_ROOMS = 12
const MAX_ROOMS = 200
// So far from its top the list is read, and keeps its order.
const AT_TOP_PX = 60

export function BoardView(): JSX.Element {
  const { room, thread } = placeOf(route.value.rest)
  const [typed, setTyped] = useState({ words: '', author: '' })
  const [kind, setKind] = useState('')
  const [toMe, setToMe] = useState(false)
  const { words, author } = useSettled(typed)
  useEffect(
    () =>
      show({
        room,
        thread,
        kind: thread === '' ? kind : '',
        author: thread === '' ? author : '',
        toMe: toMe && thread === '',
        words: thread === '' ? words : '',
      }),
    [room, thread, kind, author, toMe, words],
  )
  useEffect(watchBoard, [])
  if (access.value === 'visitor') return <Closed />
  const known = facts.value
  if (known?.enabled === false) return <Off reason={known.reason} />
  const writable = access.value === 'owner' && connection.value === 'live'
  const empty = known !== null && posts.value?.length === 0 && same(shownFilter.value, EVERYTHING)
  return (
    <List>
      <div class="head">
        <h1 id="board-title">Blackboard</h1>
        <p>{known === null ? '' : headline(known.posts)}</p>
        <label class="search">
          <Icon name="search" size={16} />
          <span class="unseen">Search the messages</span>
          <input
            type="search"
            placeholder="Search"
            value={typed.words}
            disabled={thread !== ''}
            onInput={(event) => setTyped({ ...typed, words: event.currentTarget.value })}
          />
        </label>
      </div>
      {problem.value !== '' && (
        <p class="notice worrying" role="status">
          The blackboard cannot be loaded. {problem.value}
        </p>
      )}
      {known === null && problem.value === '' && (
        <p class="quiet" role="status">
          Loading the blackboard …
        </p>
      )}
      {access.value === 'remote' && known !== null && <p class="quiet">From this device the board can be read only.</p>}
      {known !== null && known.waiting > 0 && (
        <p class="notice" role="status">
          <Icon name="warning" /> {counted(known.waiting, 'message waits', 'messages wait')}: the clocks of their
          authors are ahead of this machine’s clock. They appear when their time has come.
        </p>
      )}
      {known !== null && known.flagged.length > 0 && (
        <p class="notice worrying" role="status">
          <Icon name="warning" /> {known.flagged.slice(0, 8).map(cleanedName).join(', ')}
          {known.flagged.length > 8 && ` and ${known.flagged.length - 8} more`} broke the rules of the board: two
          messages were signed with one number. Nodes may have got different texts.
        </p>
      )}
      {thread === '' ? (
        <>
          <ClaimsStrip room={room} />
          <Rooms room={room} />
          {writable && known !== null && <PostBox target={null} room={room ?? ''} posted={() => undefined} />}
          {!empty && known !== null && (
            <Filters
              {...{ kind, setKind, toMe, setToMe, name: known.name }}
              author={typed.author}
              setAuthor={(text) => setTyped({ ...typed, author: text })}
              searching={typed.words !== ''}
            />
          )}
        </>
      ) : (
        <p class="line">
          <a class="button small" href={address('blackboard')}>
            <Icon name="back" size={16} />
            All messages
          </a>
        </p>
      )}
      {empty ? <Begin /> : <Threads room={room} alone={thread !== ''} writable={writable} />}
    </List>
  )
}

// "room:NAME" and "thread:ID" in the page's address.
function placeOf(rest: string): { room: string | null; thread: string } {
  if (rest.startsWith('thread:')) return { room: null, thread: rest.slice('thread:'.length) }
  return { room: rest.startsWith('room:') ? rest.slice('room:'.length) : null, thread: '' }
}

function headline(count: number): string {
  const some = rooms.value.length
  return `${counted(count, 'message')}${some > 1 ? ` in ${counted(some, 'room')}` : ''}`
}

function same(one: BoardFilter, other: BoardFilter): boolean {
  return (Object.keys(one) as (keyof BoardFilter)[]).every((name) => one[name] === other[name])
}

// What was typed, once no key has been pressed for a moment.
function useSettled<T>(typed: T): T {
  const [settled, setSettled] = useState(typed)
  useEffect(() => {
    const timer = setTimeout(() => setSettled(typed), TYPING_MS)
    return () => clearTimeout(timer)
  }, [typed])
  return settled
}

function List({ children }: { children: JSX.Element | (JSX.Element | false | null)[] }): JSX.Element {
  return (
    <section class="page board" aria-labelledby="board-title">
      {children}
    </section>
  )
}

function Closed(): JSX.Element {
  return (
    <List>
      <div class="head">
        <h1 id="board-title">Blackboard</h1>
      </div>
      <Empty title="The blackboard is shown to the node’s owner">
        <p>
          On this machine, run <code>mesh-llm console</code> and open the address that it prints.
        </p>
      </Empty>
    </List>
  )
}

function Off({ reason }: { reason: string }): JSX.Element {
  return (
    <List>
      <div class="head">
        <h1 id="board-title">Blackboard</h1>
      </div>
      <Empty title="The blackboard is off">
        <p>{reason}</p>
      </Empty>
    </List>
  )
}

// Commands to begin with, while nothing was posted.
function Begin(): JSX.Element {
  const program = status.value?.start?.program ?? 'mesh-llm'
  const commands = [
    ['Post from a terminal', `${program} blackboard "STATUS: trying the blackboard"`],
    ['Teach the coding agents of this machine to use it', `${program} blackboard install-skill`],
    ['Serve it to an agent as an MCP server (the command for its configuration)', `${program} blackboard --mcp`],
  ] as const
  return (
    <section class="begin" aria-labelledby="begin-title">
      <h2 id="begin-title">No messages yet</h2>
      <p class="quiet">
        People and agents on all nodes of the mesh read and write here: status, questions, findings, and claims on work.
        A message lives for 48 hours.
      </p>
      <dl>
        {commands.map(([title, text]) => (
          <div key={title}>
            <dt>{title}</dt>
            <dd>
              <Command text={text} label={title} />
            </dd>
          </div>
        ))}
      </dl>
    </section>
  )
}

function Rooms({ room }: { room: string | null }): JSX.Element | null {
  const [all, setAll] = useState(false)
  const list = rooms.value
  if (list.length === 0 && room === null) return null
  const total = list.reduce((sum, one) => sum + one.posts, 0)
  const few = list.slice(0, SHOWN_ROOMS)
  const missing = room !== null && !(all ? list.slice(0, MAX_ROOMS) : few).some((one) => one.room === room)
  const extra = missing ? [list.find((one) => one.room === room) ?? { room, posts: 0, last: 0 }] : []
  const shown = [...(all ? list.slice(0, MAX_ROOMS) : few), ...extra]
  return (
    <nav class="chips rooms" aria-label="Rooms">
      <a class="chip" href={address('blackboard')} aria-current={room === null ? 'true' : undefined}>
        All rooms <span class="count">{total.toLocaleString('en')}</span>
      </a>
      {shown.map((one) => (
        <a
          key={one.room}
          class="chip"
          href={address('blackboard', `room:${one.room}`)}
          aria-current={one.room === room ? 'true' : undefined}
        >
          <bdi>{roomName(one.room)}</bdi> <span class="count">{one.posts.toLocaleString('en')}</span>
        </a>
      ))}
      {list.length > SHOWN_ROOMS && (
        <button type="button" class="chip" aria-expanded={all} onClick={() => setAll(!all)}>
          {all ? 'Fewer rooms' : `${Math.min(list.length, MAX_ROOMS) - SHOWN_ROOMS} more rooms`}
        </button>
      )}
    </nav>
  )
}

interface FiltersProps {
  kind: string
  setKind: (kind: string) => void
  author: string
  setAuthor: (text: string) => void
  toMe: boolean
  setToMe: (wanted: boolean) => void
  name: string
  searching: boolean
}

function Filters(props: FiltersProps): JSX.Element {
  const { kind, setKind, author, setAuthor, toMe, setToMe, searching } = props
  const why = searching ? { disabled: true, title: 'Not in a search' } : {}
  return (
    <div class="line filters" role="group" aria-label="Filters">
      <label>
        <span class="unseen">Kind</span>
        <select value={kind} onChange={(event) => setKind(event.currentTarget.value)}>
          <option value="">all kinds</option>
          {KINDS.map((one) => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span class="unseen">Author or node</span>
        <input
          type="text"
          placeholder="Author or node"
          autocapitalize="off"
          spellcheck={false}
          value={author}
          onInput={(event) => setAuthor(event.currentTarget.value)}
        />
      </label>
      <label class="check">
        <input
          type="checkbox"
          checked={toMe && !searching}
          {...why}
          onChange={(event) => setToMe(event.currentTarget.checked)}
        />
        {access.value === 'owner' ? 'Names me' : `Names ${cleanedName(props.name) || 'the owner'}`}
      </label>
    </div>
  )
}

function Threads({ room, alone, writable }: { room: string | null; alone: boolean; writable: boolean }): JSX.Element {
  const filter = shownFilter.value
  const list = useRef<HTMLDivElement>(null)
  const kept = useRef<Thread[]>([])
  const order = useRef<{ filter: BoardFilter; ids: string[] }>({ filter, ids: [] })
  const [count, setCount] = useState(SHOWN)
  const [, redraw] = useState(0)
  const { value: known } = posts
  const searching = filter.words !== ''
  const threads = useMemo(() => {
    const wanted = (known ?? []).filter((post) => !searching || filter.kind === '' || post.kind === filter.kind)
    const isHere = (post: BoardPost): boolean => filter.room === null || post.room === filter.room
    // The results of a search are not folded: the best first.
    const found = searching
      ? wanted.map((post) => ({ id: post.id, root: post, replies: [], latest: post.time }))
      : threadsOf(alone ? wanted : [...wanted, ...[...opened.value.values()].flat(), ...erased.value.filter(isHere)])
    kept.current = keepUnchanged(kept.current, found)
    return kept.current
  }, [known, opened.value, erased.value, searching, filter, alone])
  useEffect(() => setCount(SHOWN), [filter])
  // What was opened or begun under another filter is shown afresh.
  const filters = useRef(0)
  const generation = useMemo(() => (filters.current += 1), [filter])
  useEffect(() => {
    const scroller = list.current?.closest('.page')
    const scrolled = (): void => {
      if (scroller !== undefined && scroller !== null && scroller.scrollTop < AT_TOP_PX) redraw((times) => times + 1)
    }
    scroller?.addEventListener('scroll', scrolled, { passive: true })
    return () => scroller?.removeEventListener('scroll', scrolled)
  }, [])
  // A list that is read keeps its order, and new threads wait for the reader.
  const still = order.current.filter === filter && order.current.ids.length > 0 && isRead(list.current)
  if (!still) order.current = { filter, ids: threads.map((thread) => thread.id) }
  const { shown, fresh } = inOrder(threads, order.current.ids)
  const showFresh = (): void => {
    order.current = { filter, ids: [] }
    list.current?.closest('.page')?.scrollTo({ top: 0 })
    list.current?.focus({ preventScroll: true })
    redraw((times) => times + 1)
  }
  return (
    <div ref={list} class="messages" tabIndex={-1} aria-label="Messages" role="region">
      <p class="fresh" role="status">
        {fresh > 0 && (
          <button type="button" class="button primary small" onClick={showFresh}>
            Show {counted(fresh, 'new message')}
          </button>
        )}
        {searchIsOld.value && searching && (
          <button type="button" class="button small" onClick={searchAgain}>
            The board has changed. Search again
          </button>
        )}
      </p>
      {known !== null && shown.length === 0 && (
        <p class="quiet" role="status">
          {alone ? 'This thread is not on the board (any more).' : 'No message matches.'}
        </p>
      )}
      <ol class="threads" aria-label={searching ? 'Found messages' : 'Threads'}>
        {shown.slice(0, count).map((thread) => (
          <ThreadItem
            key={`${generation} ${thread.id}`}
            thread={thread}
            alone={alone}
            showRoom={room === null}
            writable={writable}
          />
        ))}
      </ol>
      <More left={shown.length - count} showNext={() => setCount(count + SHOWN)} held={known?.length ?? 0} />
    </div>
  )
}

// Whether the list is scrolled, or the focus is in it: in a reply, or in a question.
function isRead(list: HTMLElement | null): boolean {
  if (list === null) return false
  const scroller = list.closest('.page')
  const focused = list.contains(document.activeElement) && document.activeElement !== list
  return focused || list.querySelector('.post-box') !== null || (scroller?.scrollTop ?? 0) >= AT_TOP_PX
}

function More({ left, showNext, held }: { left: number; showNext: () => void; held: number }): JSX.Element | null {
  if (left > 0)
    return (
      <p class="line more">
        <button type="button" class="button" onClick={showNext}>
          Show {counted(Math.min(left, SHOWN), 'more thread')}
        </button>
        <span class="quiet">{counted(left, 'thread')} left</span>
      </p>
    )
  if (more.value === 0) return null
  return (
    <p class="line more">
      {held <= FEW && shownFilter.value.words === '' && (
        <button type="button" class="button" onClick={showMany}>
          Load older messages
        </button>
      )}
      <span class="quiet">
        {counted(more.value, 'older message')} not loaded.
        {held >= MANY && ' Choose a room, a kind or an author, or search, to find them.'}
      </span>
    </p>
  )
}
