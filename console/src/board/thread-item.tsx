// A thread: its first message, the replies folded under it, and the box for a reply.

import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import type { BoardPost, PostAnswer } from '../api'
import { textOf } from '../ask'
import { counted } from '../format'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { address } from '../route'
import { closeThread, openThread } from './board'
import { Message, writerOf } from './message'
import { dropDraft, hasDraft, PostBox, toldOf } from './post-box'
import type { Thread } from './threads'

// Replies that are rendered at once.
const SHOWN_REPLIES = 40

interface ThreadProps {
  thread: Thread
  // The thread is shown alone: its replies are not folded.
  alone: boolean
  showRoom: boolean
  writable: boolean
}

export const ThreadItem = memo(function ThreadItem({ thread, alone, showRoom, writable }: ThreadProps): JSX.Element {
  const { id, root, replies } = thread
  const [open, setOpen] = useState(alone)
  // A reply that was begun before another view was shown.
  const [target, setTarget] = useState(
    () => [root, ...replies].find((post) => post !== null && hasDraft(post.id)) ?? null,
  )
  const chosen = useRef(false)
  const [told, setTold] = useState('')
  const [problem, setProblem] = useState('')
  const [count, setCount] = useState(SHOWN_REPLIES)
  const place = useRef<HTMLLIElement>(null)
  // The message that gets the focus when it is there.
  const awaited = useRef('')
  useEffect(() => {
    if (awaited.current === '') return
    const found = place.current?.querySelector<HTMLElement>(`[data-post="${CSS.escape(awaited.current)}"]`)
    if (found == null) return
    awaited.current = ''
    found.focus()
  })
  const expand = async (): Promise<void> => {
    setOpen(true)
    setProblem('')
    if (alone) return
    try {
      await openThread(id)
    } catch (error) {
      setProblem(textOf(error))
    }
  }
  const fold = (): void => {
    setOpen(false)
    setCount(SHOWN_REPLIES)
    closeThread(id)
  }
  const reply = (post: BoardPost): void => {
    setTold('')
    chosen.current = true
    setTarget(post)
    if (!open) void expand()
  }
  const posted = (answer: PostAnswer): void => {
    awaited.current = answer.post.id
    setTarget(null)
    setTold(toldOf(answer))
  }
  const close = (drop: boolean): void => {
    if (drop && target !== null) dropDraft(target.id)
    awaited.current = target?.id ?? ''
    setTarget(null)
  }
  const all = Math.max(replies.length, root?.replies ?? 0)
  const shown = open ? replies.slice(-count) : root === null ? replies.slice(-1) : []
  const byId = new Map(replies.map((post) => [post.id, post]))
  const last = replies.at(-1)
  return (
    <li ref={place} class="thread">
      {root !== null && <Message post={root} answers={null} showRoom={showRoom} writable={writable} reply={reply} />}
      {root === null && !alone && (
        <p class="quiet part">
          A reply in <a href={address('blackboard', `thread:${id}`)}>a thread</a>:
        </p>
      )}
      {all > 0 && !alone && root !== null && (
        <button type="button" class="fold" aria-expanded={open} onClick={() => (open ? fold() : void expand())}>
          <Icon name="chevron" size={14} />
          {counted(all, 'reply', 'replies')}
          {!open && last !== undefined && <span class="quiet">· the last of {writerOf(last)}</span>}
        </button>
      )}
      {open && replies.length > shown.length && (
        <button type="button" class="fold" onClick={() => setCount(count + SHOWN_REPLIES)}>
          Show {counted(Math.min(SHOWN_REPLIES, replies.length - shown.length), 'earlier reply', 'earlier replies')}
        </button>
      )}
      {shown.length > 0 && (
        <ol class={root === null ? '' : 'replies'} aria-label="Replies">
          {shown.map((post) => (
            <li key={post.id}>
              <Message
                post={post}
                answers={byId.get(post.reply_to) ?? null}
                showRoom={showRoom && root === null}
                writable={writable}
                reply={reply}
              />
            </li>
          ))}
        </ol>
      )}
      {problem !== '' && (
        <p class="notice worrying" role="alert">
          {problem}
        </p>
      )}
      {writable && target !== null && (
        <PostBox
          key={target.id}
          target={target}
          room={target.room}
          focus={chosen.current}
          posted={posted}
          close={close}
        />
      )}
      <p class={told === '' ? 'unseen' : 'quiet part'} role="status">
        {told}
      </p>
    </li>
  )
})
