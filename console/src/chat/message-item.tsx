// One message: text, thinking, statistics and actions.

import type { Signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { Copy, Tool } from '../parts/basics'
import { Icon } from '../parts/icons'
import { memo } from '../parts/memo'
import { counted, speed } from '../format'
import { progressOf } from './chats'
import { Markdown } from './markdown'
import { parameterTexts } from './parameters'
import type { Message } from './store'

interface MessageItemProps {
  message: Message
  writing: boolean // the answer is being received, here or in another tab
  versions: readonly Message[] // this message and the others in its place, the oldest first
  choose: (version: Message) => void
  regenerate: () => void
  edit: (text: string) => void
}

export function MessageItem(props: MessageItemProps): JSX.Element {
  return props.message.role === 'user' ? <UserMessage {...props} /> : <AssistantMessage {...props} />
}

function UserMessage({ message, versions, choose, edit }: MessageItemProps): JSX.Element {
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
          <Versions message={message} versions={versions} choose={choose} />
        </div>
      )}
    </li>
  )
}

// Selects one of several versions: an edited question or a repeated answer keeps the earlier ones.
function Versions({
  message,
  versions,
  choose,
}: Pick<MessageItemProps, 'message' | 'versions' | 'choose'>): JSX.Element | null {
  if (versions.length < 2) return null
  const at = versions.findIndex((one) => one.id === message.id)
  const step = (by: number, icon: 'back' | 'chevron', label: string): JSX.Element => {
    const next = versions[at + by]
    return (
      <button
        type="button"
        class="tool"
        title={label}
        disabled={next === undefined}
        onClick={() => next !== undefined && choose(next)}
      >
        <Icon name={icon} size={16} />
        <span class="unseen">{label}</span>
      </button>
    )
  }
  return (
    <div class="versions" role="group" aria-label="Versions of this message">
      {step(-1, 'back', 'Earlier version')}
      <span role="status">
        {at + 1} of {versions.length}
      </span>
      {step(1, 'chevron', 'Later version')}
    </div>
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

function AssistantMessage({ message, writing, versions, choose, regenerate }: MessageItemProps): JSX.Element {
  return (
    <li class={`assistant-message${writing ? ' streaming' : ''}`} aria-busy={writing}>
      <h2 class="unseen">{message.model ?? 'The model'}</h2>
      {message.thinking !== undefined && <Thinking message={message} streaming={writing && message.text === ''} />}
      {message.text !== '' && <Markdown text={message.text} />}
      {writing && message.text === '' && <Pending progress={progressOf(message)} />}
      {message.ended === 'error' && (
        <p class="notice bad" role="alert">
          <Icon name="warning" size={16} /> {message.error}
        </p>
      )}
      {message.ended === 'stopped' && <p class="quiet">Stopped.</p>}
      {message.ended === 'length' && <p class="quiet">{lengthText(message)}</p>}
      {!writing && message.writing !== undefined && (
        <p class="quiet">Stopped: the tab that received this answer was closed.</p>
      )}
      {!writing && (
        <div class="tools">
          {message.text !== '' && <Copy text={message.text} label="Copy the answer" quiet />}
          {message.ended === 'error' ? (
            <button type="button" class="button small" onClick={regenerate}>
              <Icon name="retry" size={16} />
              Try again
            </button>
          ) : (
            <Tool icon="retry" label="Regenerate" onClick={regenerate} />
          )}
          <Versions message={message} versions={versions} choose={choose} />
          <Statistics message={message} />
        </div>
      )}
    </li>
  )
}

function lengthText({ parameters, tokens }: Message): string {
  const most = parameters?.maxTokens
  return most !== undefined && (tokens ?? most) >= most
    ? `The answer ended at the limit of this chat: ${counted(most, 'token')}.`
    : 'The answer was cut off because the context is full.'
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
    ...parameterTexts(message.parameters ?? {}),
    message.prompted === true ? 'system prompt' : '',
  ].filter(Boolean)
  return (
    <p class="statistics">
      {facts.map((fact) => (
        <span key={fact}>{fact}</span>
      ))}
    </p>
  )
}
