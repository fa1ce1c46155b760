// One message: who wrote it, when, to whom, and its text, which is data of others.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import type { BoardPost } from '../api'
import { textOf } from '../ask'
import { ago } from '../format'
import { Badge, Tool, type Tone } from '../parts/basics'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { address } from '../route'
import { nodeSeconds, retract } from './board'
import { cleaned, cleanedName, folded, partsOf } from './text'

const TONES: Readonly<Record<string, Tone>> = { question: 'busy', finding: 'good', done: 'good' }
const AGE_MS = 20_000

// Ages are written again from time to time.
const ticks = signal(0)
setInterval(() => {
  if (!document.hidden) ticks.value += 1
}, AGE_MS)

export function roomName(room: string): string {
  return room === '' ? 'common room' : cleanedName(room)
}

export function writerOf({ name, node }: { name: string; node: string }): string {
  return `${cleanedName(name) || 'someone'}@${cleanedName(node) || '?'}`
}

interface MessageProps {
  post: BoardPost
  // The message that it replies to, if that is not the first one of the thread.
  answers: BoardPost | null
  showRoom: boolean
  writable: boolean
  reply: (post: BoardPost) => void
}

export const Message = memo(function Message({ post, answers, showRoom, writable, reply }: MessageProps): JSX.Element {
  const place = useRef<HTMLElement>(null)
  const name = writerOf(post)
  const kind = cleanedName(post.kind)
  return (
    <article
      ref={place}
      class={`message${post.mine ? ' mine' : ''}`}
      data-post={post.id}
      tabIndex={-1}
      aria-label={`${kind === 'note' ? 'Message' : kind} of ${name}`}
    >
      <header>
        <span class="writer" title={`Node ${post.author}`}>
          <bdi class="strong">{cleanedName(post.name) || 'someone'}</bdi>
          <span class="quiet">
            @<bdi>{cleanedName(post.node) || '?'}</bdi>
          </span>
        </span>
        {post.mine && <span class="quiet">this node</span>}
        {post.program !== '' && <span class="quiet program">{cleanedName(post.program)}</span>}
        {kind !== 'note' && <Badge tone={TONES[kind] ?? 'plain'}>{kind}</Badge>}
        {post.flagged && <Flag />}
        {showRoom && (
          <a class="room" href={address('blackboard', `room:${post.room}`)}>
            {roomName(post.room)}
          </a>
        )}
        <Age seconds={post.time} />
      </header>
      {(answers !== null || post.to.length > 0) && (
        <p class="quiet about">
          {answers !== null && `answers ${writerOf(answers)}`}
          {answers !== null && post.to.length > 0 && ' · '}
          {post.to.length > 0 && `to ${post.to.map(cleanedName).join(', ')}`}
        </p>
      )}
      {post.retracted ? (
        <p class="quiet">This message was retracted, and its text erased.</p>
      ) : (
        <Text text={post.text} />
      )}
      {writable && !post.retracted && (
        <footer>
          <button type="button" class="button small" onClick={() => reply(post)}>
            <Icon name="reply" size={15} />
            Reply
            <span class="unseen"> to {name}</span>
          </button>
          {post.mine && <Retract post={post} done={() => place.current?.focus()} />}
        </footer>
      )}
    </article>
  )
})

function Flag(): JSX.Element {
  return (
    <span title="The node of this author signed two messages with one number: other nodes may have got another text.">
      <Badge tone="bad">broke the rules</Badge>
    </span>
  )
}

function Age({ seconds }: { seconds: number }): JSX.Element {
  void ticks.value
  const time = new Date(seconds * 1000)
  if (Number.isNaN(time.getTime())) return <></>
  return (
    <time class="quiet" dateTime={time.toISOString()} title={time.toLocaleString()}>
      {ago(nodeSeconds() - seconds)}
    </time>
  )
}

// Long texts are folded.
export function Text({ text }: { text: string }): JSX.Element {
  const [whole, setWhole] = useState(false)
  const known = useMemo(() => cleaned(text), [text])
  const short = useMemo(() => folded(known), [known])
  const parts = useMemo(() => partsOf(whole || short === null ? known : short), [known, short, whole])
  return (
    <>
      <p class="text" dir="auto">
        {parts.map(({ text: part, link }, index) =>
          link ? (
            <a key={index} href={part} target="_blank" rel="noopener noreferrer nofollow">
              {part}
            </a>
          ) : (
            part
          ),
        )}
      </p>
      {short !== null && (
        <button type="button" class="fold" aria-expanded={whole} onClick={() => setWhole(!whole)}>
          {whole ? 'Show less' : 'Show the whole message'}
        </button>
      )}
    </>
  )
}

function Retract({ post, done }: { post: BoardPost; done: () => void }): JSX.Element {
  const [state, setState] = useState<'' | 'asks' | 'busy'>('')
  const [problem, setProblem] = useState('')
  const keep = useRef<HTMLButtonElement>(null)
  const tool = useRef<HTMLSpanElement>(null)
  useEffect(() => {
    if (state === 'asks') keep.current?.focus()
  }, [state])
  const cancel = (): void => {
    setState('')
    requestAnimationFrame(() => tool.current?.querySelector('button')?.focus())
  }
  const begin = async (): Promise<void> => {
    setState('busy')
    try {
      await retract(post.id)
      done()
    } catch (error) {
      setState('')
      setProblem(textOf(error))
    }
  }
  if (state === '')
    return (
      <span ref={tool}>
        <Tool icon="trash" label="Retract this message" danger onClick={() => setState('asks')} />
        {problem !== '' && (
          <span class="notice worrying" role="alert">
            {problem}
          </span>
        )}
      </span>
    )
  return (
    <div
      class="question"
      role="group"
      aria-label="Retract this message?"
      onKeyDown={(event) => {
        if (event.key === 'Escape') cancel()
      }}
    >
      <span role="alert">Its text is erased on all nodes. Who has read it may have kept it.</span>
      <button type="button" class="button small" ref={keep} disabled={state === 'busy'} onClick={cancel}>
        Keep it
      </button>
      <button type="button" class="button small danger" disabled={state === 'busy'} onClick={() => void begin()}>
        Retract it
      </button>
    </div>
  )
}
