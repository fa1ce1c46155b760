// The list of chats: search, rename, delete, export and import.

import type { JSX } from 'preact'
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import { counted } from '../format'
import { Tool } from '../parts/basics'
import { Icon } from '../parts/icons'
import { address, go } from '../route'
import { chats, remove, rename, search, storable } from './chats'
import { importChats, saveAllChats } from './files'
import { blocked, type Chat } from './store'

// Before a search begins, after the last key.
const SEARCH_MS = 200
const SEARCH_FROM = 6 // so many chats are worth a search field

export function ChatList({ chosen, close }: { chosen: string; close: () => void }): JSX.Element {
  const [text, setText] = useState('')
  const found = useSearch(text)
  const [renaming, setRenaming] = useState('')
  const list = chats.value
  const shown = found === null ? list : list.filter((chat) => found.has(chat.id))
  return (
    <nav class="list" aria-label="Chats">
      <a class="button wide" href={address('chat')} onClick={close}>
        <Icon name="plus" size={16} />
        New chat
      </a>
      {(list.length >= SEARCH_FROM || text !== '') && (
        <label class="search">
          <Icon name="search" size={16} />
          <span class="unseen">Search the chats</span>
          <input
            type="search"
            placeholder="Search"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
        </label>
      )}
      <ul>
        {shown.map((chat) => (
          <li key={chat.id}>
            {renaming === chat.id ? (
              <Renaming chat={chat} done={() => setRenaming('')} />
            ) : (
              <>
                <a
                  href={address('chat', chat.id)}
                  title={chat.title}
                  aria-current={chat.id === chosen ? 'page' : undefined}
                  onClick={close}
                >
                  {chat.title}
                </a>
                <Tool icon="edit" label={`Rename ${chat.title}`} onClick={() => setRenaming(chat.id)} />
                <Tool
                  icon="trash"
                  label={`Delete ${chat.title}`}
                  danger
                  onClick={() => {
                    remove(chat.id)
                    if (chat.id === chosen) go('chat', '', { replace: true })
                  }}
                />
              </>
            )}
          </li>
        ))}
      </ul>
      {found !== null && shown.length === 0 && (
        <p class="quiet" role="status">
          No chat contains this.
        </p>
      )}
      <Files empty={list.length === 0} />
      <p class="quiet">{storageText()}</p>
    </nav>
  )
}

function storageText(): string {
  if (blocked.value) return 'An older version of this page is open in another tab. Close it or reload it.'
  return storable.value
    ? 'Stored in this browser only.'
    : 'This browser cannot store chats: they are lost when the page is closed.'
}

// The chats that contain a text; null: no search.
function useSearch(text: string): ReadonlySet<string> | null {
  const [found, setFound] = useState<ReadonlySet<string> | null>(null)
  const list = chats.value
  useEffect(() => {
    if (text.trim() === '') {
      setFound(null)
      return
    }
    const stopped = new AbortController()
    const timer = setTimeout(() => {
      void search(text, stopped.signal).then((result) => {
        if (result !== null && !stopped.signal.aborted) setFound(result)
      })
    }, SEARCH_MS)
    return () => {
      clearTimeout(timer)
      stopped.abort()
    }
  }, [text, list])
  return found
}

function Renaming({ chat, done }: { chat: Chat; done: () => void }): JSX.Element {
  const field = useRef<HTMLInputElement>(null)
  useLayoutEffect(() => field.current?.select(), [])
  const save = (): void => {
    rename(chat.id, field.current?.value ?? '')
    done()
  }
  return (
    <input
      ref={field}
      class="renaming"
      aria-label={`New name of ${chat.title}`}
      maxLength={200}
      defaultValue={chat.title}
      onBlur={save}
      onKeyDown={(event) => {
        if (event.isComposing) return
        if (event.key === 'Enter') save()
        if (event.key === 'Escape') {
          event.stopPropagation()
          done()
        }
      }}
    />
  )
}

// Export of all chats, and import.
function Files({ empty }: { empty: boolean }): JSX.Element {
  const [result, setResult] = useState<{ text: string; bad: boolean } | null>(null)
  const bring = async (file: File | undefined): Promise<void> => {
    if (file === undefined) return
    setResult(null)
    try {
      const { added, known } = await importChats(file)
      const more = known === 0 ? '' : ` ${counted(known, 'chat')} ${known === 1 ? 'was' : 'were'} here already.`
      setResult({ text: `Imported ${counted(added, 'chat')}.${more}`, bad: false })
    } catch (error) {
      setResult({ text: error instanceof Error ? error.message : String(error), bad: true })
    }
  }
  return (
    <div class="files">
      <div class="line">
        <button type="button" class="button small" disabled={empty} onClick={() => void saveAllChats()}>
          Export all
        </button>
        <label class="button small">
          Import
          <input
            type="file"
            accept=".json,application/json"
            class="unseen"
            aria-label="Import chats from a file"
            onChange={(event) => {
              void bring(event.currentTarget.files?.[0])
              event.currentTarget.value = ''
            }}
          />
        </label>
      </div>
      {result !== null && (
        <p class={`notice${result.bad ? ' bad' : ''}`} role={result.bad ? 'alert' : 'status'}>
          {result.text}
        </p>
      )}
    </div>
  )
}
