// One message: what was said, what was thought, how it came about, and what can be done with it.

import type { Signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { Copy, Tool } from '../parts/basics'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { counted, speed } from '../words'
import { Markdown } from './markdown'
import type { Message } from './store'

interface LineProps {
  message: Message
  news: Signal<string> | null // while it is being written: what the gateway says meanwhile
  again: () => void
  edit: (text: string) => void
}

export function Line(props: LineProps): JSX.Element {
  return props.message.role === 'user' ? <Said {...props} /> : <Answered {...props} />
}

function Said({ message, edit }: LineProps): JSX.Element {
  const [editing, setEditing] = useState(false)
  return (
    <li class="said">
      <h2 class="unseen">You</h2>
      {message.images !== undefined && (
        <ul class="images">
          {message.images.map((url, place) => (
            <li key={place}>
              <img src={url} alt={`Image ${place + 1} you sent`} />
            </li>
          ))}
        </ul>
      )}
      {editing ? (
        <Editor
          text={message.text}
          done={(text) => {
            setEditing(false)
            if (text !== null) edit(text)
          }}
        />
      ) : (
        message.text !== '' && <p class="bubble">{message.text}</p>
      )}
      {!editing && (
        <div class="tools">
          <Tool icon="edit" label="Edit and ask again" onClick={() => setEditing(true)} />
          <Copy text={message.text} label="Copy what you wrote" quiet />
        </div>
      )}
    </li>
  )
}

function Editor({ text, done }: { text: string; done: (text: string | null) => void }): JSX.Element {
  const area = useRef<HTMLTextAreaElement>(null)
  useLayoutEffect(() => {
    // Before anybody can type: later it would move the caret under their hands.
    area.current?.focus()
    area.current?.setSelectionRange(text.length, text.length)
  }, [])
  const save = (): void => done((area.current?.value ?? '').trim() || null)
  return (
    <div class="editor">
      <textarea
        ref={area}
        aria-label="Your message"
        rows={Math.min(12, text.split('\n').length + 1)}
        onKeyDown={(event) => {
          if (event.isComposing) return
          if (event.key === 'Escape') {
            event.stopPropagation() // it is about this box, not about an answer that is being written
            done(null)
          }
          if (event.key === 'Enter' && !event.shiftKey) {
            event.preventDefault()
            save()
          }
        }}
      >
        {text}
      </textarea>
      <div class="line">
        <button type="button" class="button small" onClick={() => done(null)}>
          Cancel
        </button>
        <button type="button" class="button small primary" onClick={save}>
          Ask again
        </button>
      </div>
    </div>
  )
}

function Answered({ message, news, again }: LineProps): JSX.Element {
  const growing = news !== null
  return (
    <li class={`answered${growing ? ' growing' : ''}`} aria-busy={growing}>
      <h2 class="unseen">{message.model ?? 'The model'}</h2>
      {message.thinking !== undefined && <Thinking message={message} growing={growing && message.text === ''} />}
      {message.text !== '' && <Markdown text={message.text} />}
      {growing && message.text === '' && <Pending news={news} />}
      {message.ended === 'error' && (
        <p class="notice bad" role="alert">
          <Icon name="warning" size={16} /> {message.error}
        </p>
      )}
      {message.ended === 'stopped' && <p class="quiet">Stopped.</p>}
      {message.ended === 'length' && <p class="quiet">Cut off: there was no room for more in the model's context.</p>}
      {!growing && (
        <div class="tools">
          {message.text !== '' && <Copy text={message.text} label="Copy the answer" quiet />}
          <Tool icon="retry" label="Try again" onClick={again} />
          <Facts message={message} />
        </div>
      )}
    </li>
  )
}

function Pending({ news }: { news: Signal<string> }): JSX.Element {
  return (
    <p class="pending" role="status">
      <span class="dots" aria-hidden="true">
        <i />
        <i />
        <i />
      </span>
      {news.value || <span class="unseen">Waiting for the answer</span>}
    </p>
  )
}

const Thinking = memo(function Thinking({ message, growing }: { message: Message; growing: boolean }): JSX.Element {
  const seconds = message.thinkingSeconds
  const words = growing
    ? 'Thinking …'
    : seconds === undefined || seconds < 1
      ? 'Thought'
      : `Thought for ${counted(Math.round(seconds), 'second')}`
  return (
    <details class="thinking">
      <summary>
        <Icon name="chevron" size={14} />
        {words}
      </summary>
      <Markdown text={message.thinking ?? ''} />
    </details>
  )
})

function Facts({ message }: { message: Message }): JSX.Element {
  const facts = [
    message.model ?? '',
    message.host === undefined ? '' : `on ${message.host}`,
    message.speed === undefined ? '' : speed(message.speed),
    message.tokens === undefined ? '' : counted(message.tokens, 'token'),
    message.firstSeconds === undefined
      ? ''
      : `first after ${message.firstSeconds < 10 ? message.firstSeconds.toFixed(1) : Math.round(message.firstSeconds)} s`,
  ].filter(Boolean)
  return (
    <p class="how">
      {facts.map((fact) => (
        <span key={fact}>{fact}</span>
      ))}
    </p>
  )
}
