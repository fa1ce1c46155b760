// Messages as threads, and what holds of claims and times. Pure.

import type { BoardPost, ClaimFacts } from '../api'

// `root`: null if it is not among the messages (filtered out, or older). `replies`: the oldest first. `latest`: when the
// last of them was written, in unix seconds.
export interface Thread {
  id: string
  root: BoardPost | null
  replies: readonly BoardPost[]
  latest: number
}

// The latest first. A message may occur more than once.
export function threadsOf(posts: Iterable<BoardPost>): Thread[] {
  const groups = new Map<string, Map<string, BoardPost>>()
  for (const post of posts) {
    const id = threadOf(post)
    const group = groups.get(id) ?? new Map<string, BoardPost>()
    group.set(post.id, post)
    groups.set(id, group)
  }
  const threads = [...groups].map(([id, group]) => {
    const root = group.get(id) ?? null
    const replies = [...group.values()].filter((post) => post !== root).sort(byTime)
    return { id, root, replies, latest: Math.max(...[...group.values()].map((post) => post.time)) }
  })
  return threads.sort((one, other) => other.latest - one.latest || (one.id < other.id ? -1 : 1))
}

export function threadOf(post: BoardPost): string {
  return post.thread === '' ? post.id : post.thread
}

function byTime(one: BoardPost, other: BoardPost): number {
  return one.time - other.time || (one.id < other.id ? -1 : 1)
}

// `news` in front of `known`, the newest first, at most `limit`: of a message that is in both, that of `news`.
export function merged(known: readonly BoardPost[], news: readonly BoardPost[], limit: number): BoardPost[] {
  const all = new Map(known.map((post) => [post.id, post]))
  for (const post of news) all.set(post.id, post)
  return [...all.values()].sort((one, other) => byTime(other, one)).slice(0, limit)
}

// `posts` with `post` in place of its former version; the same list if it has none.
export function replaced(posts: readonly BoardPost[], post: BoardPost): readonly BoardPost[] {
  return posts.some((one) => one.id === post.id) ? posts.map((one) => (one.id === post.id ? post : one)) : posts
}

// The order in which threads stay while they are read: those of `before`, then older ones. Newer ones wait; `fresh` says
// how many. `threads`: the latest first.
export function inOrder(threads: readonly Thread[], before: readonly string[]): { shown: Thread[]; fresh: number } {
  const found = new Map(threads.map((thread) => [thread.id, thread]))
  const known = before.map((id) => found.get(id)).filter((thread) => thread !== undefined)
  const places = new Set(known)
  const oldest = threads.findLastIndex((thread) => places.has(thread))
  const shown = [...known, ...threads.slice(oldest + 1)]
  return { shown, fresh: threads.length - shown.length }
}

// The claims that hold, the next to end first. `now` in unix seconds.
export function standing(claims: readonly ClaimFacts[], now: number): ClaimFacts[] {
  return claims.filter((claim) => claim.until > now).sort((one, other) => one.until - other.until)
}

// "1 h 05 min", "12:34", "0:07".
export function timeLeft(seconds: number): string {
  const whole = Math.max(0, Math.ceil(seconds))
  const two = (number: number): string => String(number).padStart(2, '0')
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)}`
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`
}

// The names in a field: "amber, @cedar @birch" are three.
export function namesIn(text: string): string[] {
  const names = text
    .split(/[,;\n]+|\s+(?=@)/)
    .map((name) => name.trim().replace(/^@/, ''))
    .filter((name) => name !== '')
  return [...new Set(names)]
}
