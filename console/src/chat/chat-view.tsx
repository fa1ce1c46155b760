// The chat view: list of chats, messages, and the composer.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { chatModels } from '../mesh/models'
import { go, route } from '../route'
import { models, status } from '../state'
import '../style/chat.css'
import { ChatHead } from './chat-head'
import { ChatList } from './chat-list'
import {
  choose,
  create,
  deleted,
  edit,
  find,
  isWriting,
  loadChats,
  loadMessages,
  loaded,
  messagesIn,
  regenerate,
  restore,
  send,
  stop,
} from './chats'
import { Composer } from './composer'
import { defaults } from './defaults'
import { MessageItem } from './message-item'
import type { Chat, Message } from './store'
import { childrenOf, pathTo, type Messages } from './tree'

// A new chat is not listed before its first message.
const draft = signal<Chat>(create(''))
const LAST_MODEL = 'model'

export function ChatView(): JSX.Element {
  useEffect(() => void loadChats(), [])
  const [listed, setListed] = useState(false)
  const chat = current()
  useEffect(() => {
    if (loaded.value) void loadMessages(chat.id)
  }, [chat.id, loaded.value])
  if (!loaded.value)
    return (
      <p class="waiting" role="status">
        Loading the chats …
      </p>
    )
  const messages = messagesIn(chat.id)
  const leaf = messages?.get(chat.leaf ?? '')
  return (
    <div class={`chat-layout${listed ? ' listed' : ''}`}>
      <ChatList chosen={chat.id} close={() => setListed(false)} />
      <section class="conversation" aria-labelledby="chat-title">
        <ChatHead
          chat={chat}
          messages={messages}
          showList={() => setListed(!listed)}
          changeDraft={(changes) => {
            draft.value = { ...draft.value, ...changes }
          }}
          chooseModel={(model) => {
            localStorage.setItem(LAST_MODEL, model)
            if (chat.leaf === null) {
              draft.value = { ...draft.value, model }
              if (route.value.rest !== '') go('chat', '', { replace: true })
            }
          }}
        />
        {messages === null ? (
          <p class="waiting" role="status">
            Loading the messages …
          </p>
        ) : (
          <Thread chat={chat} messages={messages} />
        )}
        <Composer
          key={chat.id}
          busy={isWriting(leaf)}
          ready={chat.model !== '' && messages !== null}
          vision={models.value.find((model) => model.name === chat.model)?.vision !== false}
          send={async (text, images) => {
            const sent = await send(chat, text, images)
            if (sent && route.value.rest !== chat.id && draft.value.id === chat.id) {
              go('chat', chat.id, { replace: true })
              draft.value = create(chat.model)
            }
            return sent
          }}
          stop={() => leaf !== undefined && stop(leaf)}
        />
      </section>
      {deleted.value !== null && <Deleted chat={deleted.value} />}
    </div>
  )
}

// The chat of the page's address, or a new one with a model that is available.
function current(): Chat {
  const { rest } = route.value
  const found = find(rest)
  if (found !== undefined) return found
  const names = chatModels(models.value).map((model) => model.name)
  const asked = rest.startsWith('new/') ? rest.slice(4) : ''
  const last = localStorage.getItem(LAST_MODEL) ?? ''
  const model = [asked, draft.value.model, last].find((name) => names.includes(name)) ?? names[0] ?? ''
  return model === draft.value.model ? draft.value : { ...draft.value, model }
}

// A new chat takes over changed defaults.
defaults.subscribe((next) => {
  draft.value = { ...draft.value, ...next }
})

// The chat that was just deleted, to restore it.
function Deleted({ chat }: { chat: Chat }): JSX.Element {
  return (
    <div class="toast" role="status">
      <span>Deleted “{chat.title}”.</span>
      <button
        type="button"
        class="button small"
        onClick={() => {
          void restore(chat.id)
          go('chat', chat.id)
        }}
      >
        Undo
      </button>
    </div>
  )
}

function Thread({ chat, messages }: { chat: Chat; messages: Messages }): JSX.Element {
  const path = pathTo(messages, chat.leaf)
  const children = childrenOf(messages)
  const frame = useRef<HTMLDivElement>(null)
  const follows = useRef(true)
  const last = path.at(-1)
  const going = isWriting(last)
  useEffect(() => {
    follows.current = true
  }, [chat.id, last?.id])
  useEffect(() => {
    // Scrolls with the answer, unless the reader has scrolled up.
    if (follows.current && frame.current !== null) frame.current.scrollTop = frame.current.scrollHeight
  }, [chat.id, path.length, last?.text, last?.thinking, last?.ended, going])
  const scrolled = (): void => {
    const element = frame.current
    if (element !== null) follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 60
  }
  return (
    <div class="thread" ref={frame} onScroll={scrolled}>
      {path.length === 0 && <Welcome />}
      <ol aria-label="Conversation">
        {path.map((message) => (
          <MessageItem
            key={message.id}
            message={message}
            writing={isWriting(message)}
            versions={children.get(message.parent) ?? []}
            choose={(version) => choose(chat, version)}
            regenerate={() => regenerate(find(chat.id) ?? chat, message)}
            edit={(text) => edit(find(chat.id) ?? chat, message, text)}
          />
        ))}
      </ol>
      <p class="unseen" role="status">
        {answerState(going, last)}
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
