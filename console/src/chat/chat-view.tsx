// The chat view: list of conversations, messages, and the composer.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { chatModels } from '../mesh/models'
import { Icon } from '../parts/icons'
import { Tool } from '../parts/basics'
import { address, go, route } from '../route'
import { models, status } from '../state'
import '../style/chat.css'
import { Composer } from './composer'
import { MessageItem } from './message-item'
import type { Conversation, Message } from './store'
import {
  activeAnswers,
  change,
  conversations,
  create,
  edit,
  find,
  loadConversations,
  loaded,
  regenerate,
  remove,
  send,
  storable,
} from './conversations'

// A new conversation is not listed before its first message.
const draft = signal<Conversation>(create(''))
const LAST_MODEL = 'model'

export function ChatView(): JSX.Element {
  useEffect(() => void loadConversations(), [])
  const [listed, setListed] = useState(false)
  const conversation = current()
  if (!loaded.value)
    return (
      <p class="waiting" role="status">
        Loading the conversations …
      </p>
    )
  return (
    <div class={`chat-layout${listed ? ' listed' : ''}`}>
      <List chosen={conversation.id} close={() => setListed(false)} />
      <section class="conversation" aria-labelledby="chat-title">
        <Head conversation={conversation} showList={() => setListed(!listed)} />
        <Thread conversation={conversation} />
        <Composer
          key={conversation.id}
          busy={activeAnswers.value.has(conversation.id)}
          ready={conversation.model !== ''}
          vision={models.value.find((model) => model.name === conversation.model)?.vision !== false}
          send={(text, images) => {
            const sent = send(conversation, text, images)
            if (route.value.rest !== sent.id) go('chat', sent.id, { replace: true })
            draft.value = create(sent.model)
          }}
          stop={() => activeAnswers.value.get(conversation.id)?.stop()}
        />
      </section>
    </div>
  )
}

// The conversation of the page's address, or a new one with a model that is available.
function current(): Conversation {
  const { rest } = route.value
  const found = find(rest)
  if (found !== undefined) return found
  const names = chatModels(models.value).map((model) => model.name)
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
        {storable.value
          ? 'Stored in this browser only.'
          : 'This browser cannot store conversations: they are lost when the page is closed.'}
      </p>
    </nav>
  )
}

function Head({ conversation, showList }: { conversation: Conversation; showList: () => void }): JSX.Element {
  const list = chatModels(models.value)
  const known = list.some((model) => model.name === conversation.model)
  const [promptShown, setPromptShown] = useState(false)
  return (
    <div class="conversation-head">
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
              {model.availability === 'serving' ? '' : ` (${model.phase || model.availability})`}
            </option>
          ))}
        </select>
      </label>
      <span class="spacer" />
      <button
        type="button"
        class="tool"
        aria-expanded={promptShown}
        onClick={() => setPromptShown(!promptShown)}
        title="System prompt"
      >
        <Icon name="settings" />
        <span class="unseen">System prompt</span>
      </button>
      {promptShown && (
        <label class="instructions">
          <span>System prompt of this chat</span>
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
  const going = activeAnswers.value.get(conversation.id)
  useEffect(() => {
    follows.current = true
  }, [conversation.id, messages.length])
  useEffect(() => {
    // Scrolls with the answer, unless the reader has scrolled up.
    if (follows.current && frame.current !== null) frame.current.scrollTop = frame.current.scrollHeight
  }, [conversation.id, messages.length, last?.text, last?.thinking, last?.ended, going])
  const scrolled = (): void => {
    const element = frame.current
    if (element !== null) follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 60
  }
  return (
    <div class="thread" ref={frame} onScroll={scrolled}>
      {messages.length === 0 && <Welcome />}
      <ol aria-label="Conversation">
        {messages.map((message, index) => {
          const streaming = going !== undefined && index === messages.length - 1
          return (
            <MessageItem
              key={message.id}
              message={message}
              progress={streaming ? going.progress : null}
              regenerate={() => regenerate(find(conversation.id) ?? conversation, message.id)}
              edit={(text) => edit(find(conversation.id) ?? conversation, message.id, text)}
            />
          )
        })}
      </ol>
      <p class="unseen" role="status">
        {answerState(going !== undefined, last)}
      </p>
    </div>
  )
}

// The state of an answer for screen readers.
function answerState(going: boolean, last: Message | undefined): string {
  if (going) return 'The answer is being written.'
  return last?.role === 'assistant' && last.ended !== 'error' ? 'The answer is complete.' : ''
}

function Welcome(): JSX.Element {
  const list = chatModels(models.value)
  return (
    <div class="welcome">
      <h2>{list.length === 0 ? 'No chat model yet' : 'Ask anything'}</h2>
      <p>
        {list.length === 0
          ? 'No node of this mesh serves a text generation model. Start one with --model NAME.'
          : `Messages are sent from this browser to ${status.value?.name ?? 'this node'} and to the node that answers, and to no other server.`}
      </p>
    </div>
  )
}
