// The chat's room: conversations on the left, what is said in the middle, what to say below.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { chattable } from '../mesh/models'
import { Icon } from '../parts/icons'
import { Tool } from '../parts/basics'
import { address, go, route } from '../route'
import { models, status } from '../state'
import '../style/chat.css'
import { Composer } from './composer'
import { Line } from './line'
import type { Conversation, Message } from './store'
import { again, change, conversations, create, edit, find, keeps, ongoing, open, opened, remove, say } from './talk'

// A conversation in which nothing has been said yet is in no list.
const draft = signal<Conversation>(create(''))
const LAST_MODEL = 'model'

export function Room(): JSX.Element {
  useEffect(() => void open(), [])
  const [listed, setListed] = useState(false)
  const conversation = current()
  if (!opened.value)
    return (
      <p class="waiting" role="status">
        Opening the conversations …
      </p>
    )
  return (
    <div class={`room${listed ? ' listed' : ''}`}>
      <List chosen={conversation.id} close={() => setListed(false)} />
      <section class="talk" aria-labelledby="chat-title">
        <Head conversation={conversation} showList={() => setListed(!listed)} />
        <Thread conversation={conversation} />
        <Composer
          key={conversation.id}
          busy={ongoing.value.has(conversation.id)}
          ready={conversation.model !== ''}
          sees={models.value.find((model) => model.name === conversation.model)?.sees !== false}
          send={(text, images) => {
            const said = say(conversation, text, images)
            if (route.value.rest !== said.id) go('chat', said.id, { replace: true })
            draft.value = create(said.model)
          }}
          stop={() => ongoing.value.get(conversation.id)?.stop()}
        />
      </section>
    </div>
  )
}

// The conversation that the address names, or a new one; with a model that can be asked, if there is any.
function current(): Conversation {
  const { rest } = route.value
  const found = find(rest)
  if (found !== undefined) return found
  const names = chattable(models.value).map((model) => model.name)
  const asked = rest.startsWith('new/') ? rest.slice(4) : ''
  const last = localStorage.getItem(LAST_MODEL) ?? ''
  const model = [asked, draft.value.model, last].find((name) => names.includes(name)) ?? names[0] ?? ''
  return model === draft.value.model ? draft.value : { ...draft.value, model }
}

function choose(conversation: Conversation, model: string): void {
  localStorage.setItem(LAST_MODEL, model)
  if (conversation.messages.length === 0) {
    draft.value = { ...draft.value, model }
    if (route.value.rest !== '') go('chat', '', { replace: true })
  } else {
    change(conversation, { model })
  }
}

function List({ chosen, close }: { chosen: string; close: () => void }): JSX.Element {
  return (
    <nav class="list" aria-label="Conversations">
      <a class="button wide" href={address('chat')} onClick={close}>
        <Icon name="plus" size={16} />
        New chat
      </a>
      <ul>
        {conversations.value.map((one) => (
          <li key={one.id}>
            <a href={address('chat', one.id)} aria-current={one.id === chosen ? 'page' : undefined} onClick={close}>
              {one.title}
            </a>
            <Tool
              icon="trash"
              label={`Delete ${one.title}`}
              danger
              onClick={() => {
                remove(one.id)
                if (one.id === chosen) go('chat', '', { replace: true })
              }}
            />
          </li>
        ))}
      </ul>
      <p class="quiet">
        {keeps.value ? 'Kept in this browser only.' : 'This browser keeps nothing: they end with this page.'}
      </p>
    </nav>
  )
}

function Head({ conversation, showList }: { conversation: Conversation; showList: () => void }): JSX.Element {
  const list = chattable(models.value)
  const known = list.some((model) => model.name === conversation.model)
  const [instructed, setInstructed] = useState(false)
  return (
    <div class="talk-head">
      <button type="button" class="tool only-narrow" onClick={showList} title="Conversations">
        <Icon name="menu" />
        <span class="unseen">Conversations</span>
      </button>
      <h1 id="chat-title" class="unseen">
        {conversation.title === '' ? 'New chat' : conversation.title}
      </h1>
      <label class="picker">
        <span class="unseen">Model</span>
        <select value={conversation.model} onChange={(event) => choose(conversation, event.currentTarget.value)}>
          {!known && (
            <option value={conversation.model}>
              {conversation.model === '' ? 'No model yet' : `${conversation.model} (not served)`}
            </option>
          )}
          {list.map((model) => (
            <option key={model.name} value={model.name}>
              {model.name}
              {model.standing === 'serving' ? '' : ` (${model.phase || model.standing})`}
            </option>
          ))}
        </select>
      </label>
      <span class="spacer" />
      <button
        type="button"
        class="tool"
        aria-expanded={instructed}
        onClick={() => setInstructed(!instructed)}
        title="Instructions"
      >
        <Icon name="settings" />
        <span class="unseen">Instructions for the model</span>
      </button>
      {instructed && (
        <label class="instructions">
          <span>Instructions for the model, in this chat</span>
          <textarea
            rows={3}
            value={conversation.system}
            placeholder="For example: answer in one paragraph."
            onInput={(event) => {
              const system = event.currentTarget.value
              if (conversation.messages.length === 0) draft.value = { ...draft.value, system }
              else change(conversation, { system })
            }}
          />
        </label>
      )}
    </div>
  )
}

function Thread({ conversation }: { conversation: Conversation }): JSX.Element {
  const { messages } = conversation
  const frame = useRef<HTMLDivElement>(null)
  const follows = useRef(true)
  const last = messages.at(-1)
  const going = ongoing.value.get(conversation.id)
  useEffect(() => {
    follows.current = true
  }, [conversation.id, messages.length])
  useEffect(() => {
    // Follows what is written, unless the reader has gone up to read.
    if (follows.current && frame.current !== null) frame.current.scrollTop = frame.current.scrollHeight
  }, [conversation.id, messages.length, last?.text, last?.thinking, last?.ended, going])
  const scrolled = (): void => {
    const element = frame.current
    if (element !== null) follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 60
  }
  return (
    <div class="thread" ref={frame} onScroll={scrolled}>
      {messages.length === 0 && <Welcome />}
      <ol aria-label="What was said">
        {messages.map((message, place) => {
          const growing = going !== undefined && place === messages.length - 1
          return (
            <Line
              key={message.id}
              message={message}
              news={growing ? going.news : null}
              again={() => again(find(conversation.id) ?? conversation, message.id)}
              edit={(text) => edit(find(conversation.id) ?? conversation, message.id, text)}
            />
          )
        })}
      </ol>
      <p class="unseen" role="status">
        {announced(going !== undefined, last)}
      </p>
    </div>
  )
}

// What screen readers hear of an answer: that it comes and that it is there. What it says is there to be read.
function announced(going: boolean, last: Message | undefined): string {
  if (going) return 'The answer is being written.'
  return last?.role === 'assistant' && last.ended !== 'error' ? 'The answer is there.' : ''
}

function Welcome(): JSX.Element {
  const list = chattable(models.value)
  return (
    <div class="welcome">
      <h2>{list.length === 0 ? 'Nobody to talk to yet' : 'Ask anything'}</h2>
      <p>
        {list.length === 0
          ? 'No node of this mesh serves a model that writes text. Start one with --model NAME; the chat is ready as soon as it is.'
          : `What you write goes from this browser to ${status.value?.name ?? 'this node'} and to the node that answers, and nowhere else.`}
      </p>
    </div>
  )
}
