// The box for a new message or a reply. A text that was begun is kept while other views are shown.

import type { JSX } from 'preact'
import { useEffect, useId, useLayoutEffect, useRef, useState } from 'preact/hooks'
import type { BoardPost, PostAnswer, PostRequest, ScrubPreview } from '../api'
import { textOf } from '../ask'
import { Icon } from '../parts/icons'
import { preview, rooms, send } from './board'
import { roomName, writerOf } from './message'
import { bytesOf, cleaned } from './text'
import { namesIn } from './threads'

// As in the daemon (core/board/entries.py), which checks it.
const MAX_BYTES = 4096
const MAX_RECIPIENTS = 8
const SHOW_BYTES_FROM = 3000
const PREVIEW_MS = 400
const MAX_DRAFTS = 50
const MAX_HEIGHT = 320

export const KINDS = ['note', 'status', 'question', 'finding', 'tip', 'done'] as const

type Kind = NonNullable<PostRequest['kind']>

interface Draft {
  text: string
  kind: Kind
  to: string
  room: string | null // null: the shown one
}

// By the message that is replied to, '' for a new one.
const drafts = new Map<string, Draft>()

export function hasDraft(id: string): boolean {
  return (drafts.get(id)?.text ?? '') !== ''
}

export function dropDraft(id: string): void {
  drafts.delete(id)
}

interface PostBoxProps {
  // null: a new message
  target: BoardPost | null
  room: string
  // Takes the focus when it is shown.
  focus?: boolean
  posted: (answer: PostAnswer) => void
  // With Escape the text is kept.
  close?: (drop: boolean) => void
}

export function PostBox({ target, room, focus = false, posted, close }: PostBoxProps): JSX.Element {
  const id = target?.id ?? ''
  const [draft, setDraft] = useState<Draft>(
    () => drafts.get(id) ?? { text: '', kind: '', to: target === null || target.mine ? '' : target.name, room: null },
  )
  const [busy, setBusy] = useState(false)
  const [problem, setProblem] = useState('')
  const [told, setTold] = useState('')
  // The fields beside the text are shown once it is wanted, and then stay: a click on what is below would miss it.
  const [wanted, setWanted] = useState(target !== null || draft.text !== '')
  const area = useRef<HTMLTextAreaElement>(null)
  const found = usePreview(draft.text)
  const names = useId()
  // Before the next key is pressed.
  useLayoutEffect(() => {
    if (!focus) return
    area.current?.focus({ preventScroll: true })
    area.current?.closest('form')?.scrollIntoView({ block: 'nearest' })
  }, [target, focus])
  useEffect(() => {
    const element = area.current
    if (element === null) return
    element.style.height = 'auto'
    element.style.height = `${Math.min(element.scrollHeight + 2, MAX_HEIGHT)}px`
  }, [draft.text, wanted])
  const change = (fields: Partial<Draft>): void => {
    const next = { ...draft, ...fields }
    setDraft(next)
    setTold('')
    setProblem('')
    drafts.delete(id)
    drafts.set(id, next)
    for (const oldest of drafts.keys()) if (drafts.size > MAX_DRAFTS) drafts.delete(oldest)
  }
  const size = bytesOf(draft.text)
  const recipients = namesIn(draft.to)
  const tooLong = size > MAX_BYTES
  const tooMany = recipients.length > MAX_RECIPIENTS
  const ready = draft.text.trim() !== '' && !busy && !tooLong && !tooMany
  const submit = async (): Promise<void> => {
    if (!ready) return
    setBusy(true)
    setProblem('')
    try {
      const answer = await send({
        text: draft.text.trim(),
        room: target?.room ?? draft.room ?? room,
        kind: draft.kind,
        reply_to: id,
        to: recipients,
      })
      drafts.delete(id)
      setDraft({ ...draft, text: '', to: '' })
      setTold(toldOf(answer))
      area.current?.focus()
      posted(answer)
    } catch (error) {
      setProblem(textOf(error))
    } finally {
      setBusy(false)
    }
  }
  const label = target === null ? 'New message' : `Reply to ${writerOf(target)}`
  return (
    <form
      class="post-box"
      onSubmit={(event) => {
        event.preventDefault()
        void submit()
      }}
      onKeyDown={(event) => {
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !event.isComposing) {
          event.preventDefault()
          void submit()
        } else if (event.key === 'Escape') close?.(false)
      }}
    >
      <textarea
        ref={area}
        rows={wanted ? 3 : 1}
        aria-label={label}
        onFocus={() => setWanted(true)}
        placeholder={target === null ? 'Tell all nodes of the mesh what you do, found or need' : label}
        value={draft.text}
        onInput={(event) => change({ text: event.currentTarget.value })}
      />
      <Preview found={found} />
      <div class="options" hidden={!wanted}>
        {target === null && (
          <label>
            <span>Room</span>
            <input
              type="text"
              list={names}
              placeholder="common room"
              autocapitalize="off"
              spellcheck={false}
              value={draft.room ?? room}
              onInput={(event) => change({ room: event.currentTarget.value.trim() })}
            />
            <datalist id={names}>
              {rooms.value
                .filter((one) => one.room !== '')
                .slice(0, 100)
                .map((one) => (
                  <option key={one.room} value={one.room} />
                ))}
            </datalist>
          </label>
        )}
        <label>
          <span>Kind</span>
          <select value={draft.kind} onChange={(event) => change({ kind: event.currentTarget.value as Kind })}>
            <option value="">by its first word</option>
            {KINDS.map((kind) => (
              <option key={kind} value={kind}>
                {kind}
              </option>
            ))}
          </select>
        </label>
        <label>
          <span>To</span>
          <input
            type="text"
            placeholder="all"
            title="Names of those who should be told, with commas between them"
            autocapitalize="off"
            spellcheck={false}
            value={draft.to}
            onInput={(event) => change({ to: event.currentTarget.value })}
          />
        </label>
        <div class="send">
          {close !== undefined && (
            <button type="button" class="button" onClick={() => close(true)}>
              Cancel
            </button>
          )}
          <button type="submit" class="button primary" disabled={!ready} title="Ctrl+Enter">
            <Icon name="send" size={16} />
            {target === null ? 'Post' : 'Reply'}
          </button>
        </div>
      </div>
      {(size > SHOW_BYTES_FROM || tooMany) && (
        <p class={tooLong || tooMany ? 'limit bad' : 'limit'} role="status">
          {tooMany
            ? `${recipients.length} recipients; at most ${MAX_RECIPIENTS} can be named.`
            : `${size.toLocaleString('en')} of ${MAX_BYTES.toLocaleString('en')} bytes`}
        </p>
      )}
      {problem !== '' && (
        <p class="notice worrying" role="alert">
          {problem}
        </p>
      )}
      <p class={told === '' ? 'unseen' : 'quiet'} role="status">
        {told}
      </p>
    </form>
  )
}

export function toldOf({ post, replaced }: PostAnswer): string {
  return `Posted in ${roomName(post.room)}.${replaced === '' ? '' : ` Replaced: ${replaced}.`}`
}

// What posting would replace, shown only if it would.
function Preview({ found }: { found: ScrubPreview | null }): JSX.Element {
  return (
    <div role="status">
      {found !== null && (
        <div class="preview">
          <p>
            <Icon name="warning" size={16} /> Posting replaces: {found.replaced}. Others read:
          </p>
          <p class="text" dir="auto" tabIndex={0} role="region" aria-label="The message as it would be posted">
            {cleaned(found.text)}
          </p>
        </div>
      )}
    </div>
  )
}

function usePreview(text: string): ScrubPreview | null {
  const [found, setFound] = useState<ScrubPreview | null>(null)
  useEffect(() => {
    if (text.trim() === '' || bytesOf(text) > MAX_BYTES) {
      setFound(null)
      return
    }
    const own = new AbortController()
    const timer = setTimeout(async () => {
      const next = await preview(text, own.signal)
      if (!own.signal.aborted) setFound(next)
    }, PREVIEW_MS)
    return () => {
      clearTimeout(timer)
      own.abort()
    }
  }, [text])
  return found
}
