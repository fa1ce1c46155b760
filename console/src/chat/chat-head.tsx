// The head of a chat: model, system prompt and parameters, export.

import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { chatModels } from '../mesh/models'
import { Icon } from '../parts/icons'
import { models } from '../state'
import { change } from './chats'
import { defaults, MAX_SYSTEM_LENGTH, setDefaults } from './defaults'
import { saveChatAsJson, saveChatAsMarkdown } from './files'
import { PARAMETER_NAMES, PARAMETERS, parseParameter, type ChatParameters, type ParameterName } from './parameters'
import type { Chat } from './store'
import type { Messages } from './tree'

type Changes = Partial<Pick<Chat, 'model' | 'system' | 'parameters'>>

interface ChatHeadProps {
  chat: Chat
  messages: Messages | null // null: they are loaded
  showList: () => void
  changeDraft: (changes: Changes) => void
  chooseModel: (model: string) => void
}

type Panel = 'settings' | 'export' | null

export function ChatHead({ chat, messages, showList, changeDraft, chooseModel }: ChatHeadProps): JSX.Element {
  const [panel, setPanel] = useState<Panel>(null)
  const toggle = (one: Panel): void => setPanel(panel === one ? null : one)
  const isDraft = chat.leaf === null
  const set = (changes: Changes): void => {
    if (isDraft) changeDraft(changes)
    else void change(chat.id, changes)
  }
  return (
    <div class="conversation-head">
      <button type="button" class="tool only-narrow" onClick={showList} title="Chats">
        <Icon name="menu" />
        <span class="unseen">Chats</span>
      </button>
      <h1 id="chat-title" class="unseen">
        {chat.title === '' ? 'New chat' : chat.title}
      </h1>
      <ModelPicker
        chat={chat}
        choose={(model) => {
          chooseModel(model)
          if (!isDraft) void change(chat.id, { model })
        }}
      />
      <span class="spacer" />
      {!isDraft && messages !== null && (
        <PanelButton
          name="download"
          label="Export this chat"
          shown={panel === 'export'}
          toggle={() => toggle('export')}
        />
      )}
      <PanelButton
        name="settings"
        label="Settings of this chat"
        shown={panel === 'settings'}
        toggle={() => toggle('settings')}
      />
      {panel === 'settings' && <Settings key={chat.id} chat={chat} set={set} />}
      {panel === 'export' && messages !== null && !isDraft && (
        <div class="panel">
          <p>
            JSON holds the whole chat, with images and all versions of its messages, and can be imported here again.
            Markdown is the shown text.
          </p>
          <div class="line">
            <button type="button" class="button small" onClick={() => saveChatAsJson(chat, messages)}>
              Save as JSON
            </button>
            <button type="button" class="button small" onClick={() => saveChatAsMarkdown(chat, messages)}>
              Save as Markdown
            </button>
          </div>
        </div>
      )}
    </div>
  )
}

function PanelButton(props: {
  name: 'download' | 'settings'
  label: string
  shown: boolean
  toggle: () => void
}): JSX.Element {
  return (
    <button type="button" class="tool" aria-expanded={props.shown} onClick={props.toggle} title={props.label}>
      <Icon name={props.name} />
      <span class="unseen">{props.label}</span>
    </button>
  )
}

function ModelPicker({ chat, choose }: { chat: Chat; choose: (model: string) => void }): JSX.Element {
  const list = chatModels(models.value)
  const known = list.some((model) => model.name === chat.model)
  return (
    <label class="picker">
      <span class="unseen">Model</span>
      <select value={chat.model} onChange={(event) => choose(event.currentTarget.value)}>
        {!known && (
          <option value={chat.model}>{chat.model === '' ? 'No model yet' : `${chat.model} (not served)`}</option>
        )}
        {list.map((model) => (
          <option key={model.name} value={model.name}>
            {model.name}
            {model.availability === 'serving' ? '' : ` (${model.phase ?? model.availability})`}
          </option>
        ))}
      </select>
    </label>
  )
}

function Settings({ chat, set }: { chat: Chat; set: (changes: Changes) => void }): JSX.Element {
  const [saved, setSaved] = useState(false)
  const { system, parameters } = chat
  const same =
    JSON.stringify([system, parameters]) === JSON.stringify([defaults.value.system, defaults.value.parameters])
  return (
    <div class="panel">
      <label class="instructions">
        <span>System prompt of this chat</span>
        <textarea
          rows={3}
          maxLength={MAX_SYSTEM_LENGTH}
          value={system}
          placeholder="For example: answer in one paragraph."
          onInput={(event) => set({ system: event.currentTarget.value })}
        />
      </label>
      <div class="parameters">
        {PARAMETER_NAMES.map((name) => (
          <Parameter
            key={name}
            name={name}
            value={parameters[name]}
            set={(value) => set({ parameters: withParameter(parameters, name, value) })}
          />
        ))}
      </div>
      <div class="line">
        <button
          type="button"
          class="button small"
          disabled={same}
          onClick={() => {
            setDefaults({ system, parameters })
            setSaved(true)
          }}
        >
          Use for new chats
        </button>
        <button
          type="button"
          class="button small"
          disabled={same}
          onClick={() => {
            setSaved(false)
            set({ ...defaults.value })
          }}
        >
          Reset to the defaults
        </button>
        <span class="quiet" role="status">
          {saved && same
            ? 'New chats in this browser begin with these settings.'
            : 'An empty field leaves it to the model.'}
        </span>
      </div>
    </div>
  )
}

function withParameter(parameters: ChatParameters, name: ParameterName, value: number | undefined): ChatParameters {
  const { [name]: _, ...others } = parameters
  return value === undefined ? others : { ...others, [name]: value }
}

// A field that keeps what was typed; only a valid value is set.
function Parameter(props: {
  name: ParameterName
  value: number | undefined
  set: (value: number | undefined) => void
}): JSX.Element {
  const { name, value, set } = props
  const { label, help, whole } = PARAMETERS[name]
  const [text, setText] = useState(value === undefined ? '' : String(value))
  const parsed = parseParameter(name, text)
  const wrong = parsed === null
  // Set elsewhere: by "Reset to the defaults", or in another tab.
  const shown = !wrong && parsed !== value ? (value === undefined ? '' : String(value)) : text
  const id = `parameter-${name}`
  return (
    <div class="field">
      <label htmlFor={id}>{label}</label>
      <input
        id={id}
        type="text"
        inputMode={whole ? 'numeric' : 'decimal'}
        autocomplete="off"
        placeholder="default"
        value={shown}
        aria-invalid={wrong}
        aria-describedby={`${id}-help`}
        onInput={(event) => {
          const typed = event.currentTarget.value
          setText(typed)
          const next = parseParameter(name, typed)
          if (next !== null) set(next)
        }}
      />
      <small id={`${id}-help`} class={wrong ? 'wrong' : ''} role={wrong ? 'alert' : undefined}>
        {wrong ? `Not sent: ${help}` : help}
      </small>
    </div>
  )
}
