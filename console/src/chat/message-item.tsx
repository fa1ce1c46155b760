// One message: text, thinking, statistics and actions.

import type { Signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { Copy, Tool } from '../parts/basics'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { counted, speed } from '../format'
import { Markdown } from './markdown'
import type { Message } from './store'

interface MessageItemProps {
  message: Message
  progress: Signal<string> | null // the gateway's progress while the answer streams, else null
  regenerate: () => void
  edit: (text: string) => void
}

export function MessageItem(props: MessageItemProps): JSX.Element {
  return props.message.role === 'user' ? <UserMessage {...props} /> : <AssistantMessage {...props} />
}

function UserMessage({ message, edit }: MessageItemProps): JSX.Element {
  const [editing, setEditing] = useState(false)
  return (
    <li class="user-message">
      <h2 class="unseen">You</h2>
      {message.images !== undefined && (
        <ul class="images">
          {message.images.map((url, index) => (
            <li key={index}>
              <img src={url} alt={`Image ${index + 1} of your message`} />
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
          <Tool icon="edit" label="Edit and submit again" onClick={() => setEditing(true)} />
          <Copy text={message.text} label="Copy the message" quiet />
        </div>
      )}
    </li>
  )
}

function Editor({ text, done }: { text: string; done: (text: string | null) => void }): JSX.Element {
  const area = useRef<HTMLTextAreaElement>(null)
  useLayoutEffect(() => {
    // Before the first key press, which would otherwise move the caret.
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
            event.stopPropagation() // closes this editor and does not stop a streaming answer
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
          Submit
        </button>
      </div>
    </div>
  )
}

function AssistantMessage({ message, progress, regenerate }: MessageItemProps): JSX.Element {
  const streaming = progress !== null
  return (
    <li class={`assistant-message${streaming ? ' streaming' : ''}`} aria-busy={streaming}>
      <h2 class="unseen">{message.model ?? 'The model'}</h2>
      {message.thinking !== undefined && <Thinking message={message} streaming={streaming && message.text === ''} />}
      {message.text !== '' && <Markdown text={message.text} />}
      {streaming && message.text === '' && <Pending progress={progress} />}
      {message.ended === 'error' && (
        <p class="notice bad" role="alert">
          <Icon name="warning" size={16} /> {message.error}
        </p>
      )}
      {message.ended === 'stopped' && <p class="quiet">Stopped.</p>}
      {message.ended === 'length' && <p class="quiet">The answer was cut off because the context is full.</p>}
      {!streaming && (
        <div class="tools">
          {message.text !== '' && <Copy text={message.text} label="Copy the answer" quiet />}
          <Tool icon="retry" label="Regenerate" onClick={regenerate} />
          <Statistics message={message} />
        </div>
      )}
    </li>
  )
}

function Pending({ progress }: { progress: Signal<string> }): JSX.Element {
  return (
    <p class="pending" role="status">
      <span class="dots" aria-hidden="true">
        <i />
        <i />
        <i />
      </span>
      {progress.value || <span class="unseen">Waiting for the answer</span>}
    </p>
  )
}

const Thinking = memo(function Thinking({ message, streaming }: { message: Message; streaming: boolean }): JSX.Element {
  const seconds = message.thinkingSeconds
  const text = streaming
    ? 'Thinking …'
    : seconds === undefined || seconds < 1
      ? 'Thinking'
      : `Thinking took ${counted(Math.round(seconds), 'second')}`
  return (
    <details class="thinking">
      <summary>
        <Icon name="chevron" size={14} />
        {text}
      </summary>
      <Markdown text={message.thinking ?? ''} />
    </details>
  )
})

function Statistics({ message }: { message: Message }): JSX.Element {
  const facts = [
    message.model ?? '',
    message.host === undefined ? '' : `on ${message.host}`,
    message.speed === undefined ? '' : speed(message.speed),
    message.tokens === undefined ? '' : counted(message.tokens, 'token'),
    message.firstSeconds === undefined
      ? ''
      : `first token after ${message.firstSeconds < 10 ? message.firstSeconds.toFixed(1) : Math.round(message.firstSeconds)} s`,
  ].filter(Boolean)
  return (
    <p class="statistics">
      {facts.map((fact) => (
        <span key={fact}>{fact}</span>
      ))}
    </p>
  )
}
