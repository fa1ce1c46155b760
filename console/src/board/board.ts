// The blackboard as this page knows it. It is loaded when the view opens, and again when the daemon says that it has
// changed: what is new after the last page, and from time to time all that is shown, because messages are retracted and
// expire.
//
// Invariant: nothing is asked for without the rights to read the board.

import { effect, signal } from '@preact/signals'
import type {
  BoardFacts,
  BoardPage,
  BoardPost,
  ClaimFacts,
  ClaimsAnswer,
  PostAnswer,
  PostRequest,
  RetractAnswer,
  RoomFacts,
  RoomsAnswer,
  ScrubPreview,
} from '../api'
import { clockOffset, get, post, Refused, textOf } from '../ask'
import { access, boardChanges, connection, lock } from '../state'
import { keepUnchanged } from '../structural-sharing'
import { merged, replaced, threadOf } from './threads'

// Which messages are shown. `room` null: of all rooms, '': the common one. `thread`: of this thread alone. `words`: a
// search, which takes only `room` and `author` beside it.
export interface BoardFilter {
  room: string | null
  thread: string
  kind: string
  author: string
  toMe: boolean
  words: string
}

const API = '/api/blackboard'
const ALL_ROOMS = '*'
const HOURS = '48' // the life of a message
// Messages that are held here. More of them are found by a filter or a search.
export const FEW = 200
export const MANY = 500
// Between two loads, between two loads of all, and before a failed one is repeated.
const MIN_INTERVAL_MS = 700
const WHOLE_MS = 15_000
const RETRY_MS = 5000
// Without a change, messages expire and waiting ones appear.
const HEARTBEAT_MS = 120_000
// Threads that are kept whole because they were opened.
const MAX_OPENED = 12
const MAX_ERASED = 20

export const EVERYTHING: BoardFilter = { room: null, thread: '', kind: '', author: '', toMe: false, words: '' }

// null: not loaded yet
export const facts = signal<BoardFacts | null>(null)
export const rooms = signal<readonly RoomFacts[]>([])
export const claims = signal<readonly ClaimFacts[]>([])
// The messages that `shownFilter` lets through, the newest first (of a search: the best first), how many there are
// beside them, and those of threads that were opened.
export const posts = signal<readonly BoardPost[] | null>(null)
export const shownFilter = signal<BoardFilter>(EVERYTHING)
export const more = signal(0)
export const opened = signal<ReadonlyMap<string, readonly BoardPost[]>>(new Map())
// Own messages that were retracted here: their places are kept as long as the view is open.
export const erased = signal<readonly BoardPost[]>([])
export const searchIsOld = signal(false) // the board has changed since the search
export const problem = signal('')

let filter = EVERYTHING
let limit = FEW
let cursor = ''
let wholeAt = -Infinity // performance.now() of the last load of all
// Whether something was loaded since then, and how often the board had changed until then.
let fresh = false
let wholeChanges = 0
let running: AbortController | null = null

// The time by the node's clock, in unix seconds.
export function nodeSeconds(): number {
  return (Date.now() + clockOffset.peek()) / 1000
}

// Starts to follow the board; returns the function that stops it.
export function watchBoard(): () => void {
  if (running === null) restart()
  // Changes are missed while the connection is lost or the page is hidden.
  let before = connection.peek()
  const unsubscribe = effect(() => {
    const now = connection.value
    if (now === 'live' && before === 'lost') restart()
    before = now
  })
  const seen = (): void => {
    if (document.hidden) stop()
    else restart()
  }
  document.addEventListener('visibilitychange', seen)
  return () => {
    document.removeEventListener('visibilitychange', seen)
    unsubscribe()
    stop()
    opened.value = new Map()
    erased.value = []
    if (connection.peek() === 'locked') forget()
  }
}

function stop(): void {
  running?.abort()
  running = null
}

function forget(): void {
  facts.value = posts.value = null
  rooms.value = claims.value = []
}

export function show(next: BoardFilter): void {
  const same = (Object.keys(next) as (keyof BoardFilter)[]).every((name) => next[name] === filter[name])
  if (same && running !== null) return
  if (!same) {
    filter = next
    limit = FEW
  }
  restart()
}

export function showMany(): void {
  limit = MANY
  restart()
}

// The same again: what is found may come in another order.
export function searchAgain(): void {
  filter = { ...filter }
  restart()
}

function restart(): void {
  running?.abort()
  running = new AbortController()
  wholeAt = -Infinity
  void follow(running.signal)
}

async function follow(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const seen = boardChanges.peek()
    const good = await load(signal)
    if (signal.aborted) return
    await pause(good ? MIN_INTERVAL_MS : RETRY_MS, signal)
    if (good) await change(seen, signal)
  }
}

// Until the board has changed, or all of it must be loaded again.
function change(seen: number, signal: AbortSignal): Promise<void> {
  if (boardChanges.peek() !== seen) return Promise.resolve()
  return new Promise((resolve) => {
    const due = fresh ? WHOLE_MS - (performance.now() - wholeAt) : HEARTBEAT_MS
    const timer = setTimeout(end, Math.max(due, 0))
    const stop = effect(() => {
      if (boardChanges.value !== seen) queueMicrotask(end)
    })
    signal.addEventListener('abort', end, { once: true })
    function end(): void {
      clearTimeout(timer)
      stop()
      signal.removeEventListener('abort', end)
      resolve()
    }
  })
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(end, ms)
    signal.addEventListener('abort', end, { once: true })
    function end(): void {
      clearTimeout(timer)
      signal.removeEventListener('abort', end)
      resolve()
    }
  })
}

// Returns whether it succeeded.
async function load(signal: AbortSignal): Promise<boolean> {
  if (access.peek() === 'visitor' || connection.peek() === 'locked') return true
  try {
    const now = await get<BoardFacts>(`${API}/facts`, signal)
    facts.value = keepUnchanged(facts.peek() ?? undefined, now)
    if (!now.enabled) {
      posts.value = null
      problem.value = ''
      return true
    }
    const [isNew, someRooms, someClaims] = await Promise.all([
      loadPosts(signal),
      get<RoomsAnswer>(`${API}/rooms`, signal),
      get<ClaimsAnswer>(`${API}/claims?${query({ room: ALL_ROOMS })}`, signal),
    ])
    const nextClaims = keepUnchanged(claims.peek(), someClaims.claims)
    const explained = isNew || nextClaims !== claims.peek()
    rooms.value = keepUnchanged(rooms.peek(), someRooms.rooms)
    claims.value = nextClaims
    // What is neither a message nor a claim is a text that was erased: it must not stay on the page.
    if (!explained) await loadWhole(filter, signal)
    problem.value = ''
    return true
  } catch (error) {
    if (signal.aborted) return false
    if (error instanceof Refused && error.status === 401) {
      forget()
      lock()
    } else problem.value = textOf(error)
    return false
  }
}

// Returns whether there was something new, or all was loaded.
async function loadPosts(signal: AbortSignal): Promise<boolean> {
  const wanted = filter
  const first = wholeAt === -Infinity
  if (wanted.words !== '' && !first) {
    // The best results would change their places while they are read.
    searchIsOld.value = boardChanges.peek() !== wholeChanges
    return true
  }
  if (wanted.words === '' && !first && cursor !== '' && performance.now() - wholeAt < WHOLE_MS) {
    const page = await get<BoardPage>(`${API}/feed?${feedQuery(wanted, { after: cursor })}`, signal)
    if (page.more === 0) {
      takeNews(page)
      if (page.posts.length > 0 && isNarrow(wanted)) await loadOpened(signal)
      return page.posts.length > 0
    }
  }
  await loadWhole(wanted, signal)
  return true
}

function takeNews(page: BoardPage): void {
  const known = posts.peek() ?? []
  const ids = new Set(known.map((one) => one.id))
  const next = merged(known, page.posts, limit)
  more.value += known.length + page.posts.filter((one) => !ids.has(one.id)).length - next.length
  posts.value = keepUnchanged(posts.peek() ?? undefined, next)
  cursor = page.cursor
  fresh = true
}

async function loadWhole(wanted: BoardFilter, signal: AbortSignal): Promise<void> {
  const { words, thread } = wanted
  if (words !== '') keep(wanted, await get<BoardPage>(`${API}/search?${searchQuery(wanted)}`, signal))
  else if (thread === '') keep(wanted, await get<BoardPage>(`${API}/feed?${feedQuery(wanted)}`, signal))
  else keep(wanted, await threadPage(wanted, signal))
  await loadOpened(signal)
}

// The page of a thread; an empty one if it is not on the board (any more).
async function threadPage(wanted: BoardFilter, signal: AbortSignal): Promise<BoardPage> {
  try {
    return await get<BoardPage>(`${API}/feed?${feedQuery(wanted, {}, MANY)}`, signal)
  } catch (error) {
    if (error instanceof Refused && error.status === 400) return { posts: [], more: 0, cursor: '' }
    throw error
  }
}

// Whether the news of the feed lack messages of threads that were opened.
function isNarrow({ kind, author, toMe }: BoardFilter): boolean {
  return kind !== '' || author !== '' || toMe
}

function keep(wanted: BoardFilter, page: BoardPage): void {
  wholeAt = performance.now()
  wholeChanges = boardChanges.peek()
  fresh = false
  cursor = page.cursor
  more.value = page.more
  searchIsOld.value = false
  posts.value = keepUnchanged(posts.peek() ?? undefined, page.posts)
  if (wanted === shownFilter.peek()) return
  shownFilter.value = wanted
  // Threads that were opened under another filter are not of this one.
  opened.value = new Map()
}

async function loadOpened(signal: AbortSignal): Promise<void> {
  await Promise.all([...opened.peek().keys()].map((id) => openThread(id, signal)))
}

// Loads all messages of a thread.
export async function openThread(id: string, signal: AbortSignal = new AbortController().signal): Promise<void> {
  const page = await threadPage({ ...EVERYTHING, thread: id }, signal)
  const known = new Map(opened.peek())
  if (page.posts.length === 0) known.delete(id)
  else known.set(id, keepUnchanged(known.get(id), page.posts))
  for (const oldest of known.keys()) if (known.size > MAX_OPENED) known.delete(oldest)
  opened.value = known
}

export function closeThread(id: string): void {
  const left = new Map(opened.peek())
  if (left.delete(id)) opened.value = left
}

function feedQuery(wanted: BoardFilter, extra: Record<string, string> = {}, count = limit): string {
  const { thread, kind, author, toMe } = wanted
  const mine = toMe ? { to_me: 'true' } : {}
  return query({ room: roomOf(wanted), thread, kind, author, hours: HOURS, limit: String(count), ...mine, ...extra })
}

function searchQuery(wanted: BoardFilter): string {
  const { words, author } = wanted
  return query({ words, room: roomOf(wanted), author, hours: HOURS, limit: String(FEW) })
}

function roomOf(wanted: BoardFilter): string {
  return wanted.thread !== '' || wanted.room === null ? ALL_ROOMS : wanted.room
}

// An empty room is the common one, and is sent; other empty fields are not.
function query(fields: Record<string, string>): string {
  return new URLSearchParams(
    Object.entries(fields).filter(([name, value]) => name === 'room' || value !== ''),
  ).toString()
}

// Posts a message. Throws an Error with a text for the user.
export async function send(wish: PostRequest): Promise<PostAnswer> {
  const answer = await asked<PostAnswer>('post', wish)
  const thread = threadOf(answer.post)
  const whole = opened.peek().get(thread)
  if (whole !== undefined) opened.value = new Map(opened.peek()).set(thread, merged(whole, [answer.post], MANY))
  boardChanges.value += 1
  return answer
}

// Erases the text of an own message. Throws as `send`.
export async function retract(id: string): Promise<void> {
  const answer = await asked<RetractAnswer>('retract', { post: id })
  erased.value = [...erased.value, answer.post].slice(-MAX_ERASED)
  if (posts.value !== null) posts.value = replaced(posts.value, answer.post)
  opened.value = new Map([...opened.value].map(([thread, list]) => [thread, replaced(list, answer.post)]))
}

// What would be replaced in `text`; null if nothing, or if it is not known.
export async function preview(text: string, signal: AbortSignal): Promise<ScrubPreview | null> {
  try {
    const found = await post<ScrubPreview>(`${API}/preview`, { text }, signal)
    return found.replaced === '' ? null : found
  } catch {
    return null
  }
}

async function asked<Answer>(path: string, body: object): Promise<Answer> {
  try {
    return await post<Answer>(`${API}/${path}`, body)
  } catch (error) {
    throw new Error(textOf(error))
  }
}
