// How to join: an invite for a machine, and settings for programs that use the API.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import type { ErrorAnswer, InviteAnswer } from '../api'
import { consoleHeaders, key } from '../key'
import { chatModels } from '../mesh/models'
import { Command, Copy } from '../parts/basics'
import { Icon } from '../parts/icons'
import { Qr } from '../parts/qr'
import { access, api, models, status } from '../state'
import { Devices, ReadOnly } from './devices'
import { clientSetups } from './client-setup'
import { placeElsewhere, startElsewhere } from './commands'

const LIFETIMES: readonly [string, number][] = [
  ['Expires in a day', 0],
  ['Expires in 2 hours', 7200],
  ['Expires in a week', 604_800],
]

// Stands for the API key where it is shown; the copied text has the key itself.
const KEY = 'MESH_LLM_KEY'

// Not stored: dropped when the view is left.
const invite = signal<InviteAnswer | null>(null)

export function Join(): JSX.Element {
  const owner = access.value === 'owner'
  const remote = access.value === 'remote'
  return (
    <section class="page narrow" aria-labelledby="join-title">
      <div class="head">
        <h1 id="join-title">Join</h1>
        <p>
          {owner
            ? 'Add a machine to the mesh, or use the mesh from a program or a phone.'
            : 'Use the mesh from a program.'}
        </p>
      </div>
      {owner && <Invite />}
      <Programs remote={remote} />
      {remote && <ReadOnly />}
      {owner && <Devices />}
    </section>
  )
}

function Invite(): JSX.Element {
  const [seconds, setSeconds] = useState(0)
  const [problem, setProblem] = useState('')
  useEffect(
    () => () => {
      invite.value = null
    },
    [],
  )
  const ask = async (): Promise<void> => {
    setProblem('')
    try {
      invite.value = await fetchInvite(seconds)
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error))
    }
  }
  const shown = invite.value
  return (
    <section class="card" aria-labelledby="invite-title">
      <h2 id="invite-title">Machines</h2>
      <p>
        An invite is a secret: every machine that has it can join the mesh. It is created on request and shown on this
        machine only.
      </p>
      <div class="line">
        <label>
          <span class="unseen">Lifetime of the invite</span>
          <select value={seconds} onChange={(event) => setSeconds(Number(event.currentTarget.value))}>
            {LIFETIMES.map(([title, term]) => (
              <option key={term} value={term}>
                {title}
              </option>
            ))}
          </select>
        </label>
        <button type="button" class="button primary" onClick={() => void ask()}>
          <Icon name="eye" size={16} />
          {shown === null ? 'Show an invite' : 'New invite'}
        </button>
        {shown !== null && (
          <button
            type="button"
            class="button"
            onClick={() => {
              invite.value = null
            }}
          >
            Hide
          </button>
        )}
      </div>
      {problem !== '' && (
        <p class="notice worrying" role="alert">
          {problem}
        </p>
      )}
      {shown !== null && <InviteDetails invite={shown} />}
    </section>
  )
}

function InviteDetails({ invite: { invite: token, expires } }: { invite: InviteAnswer }): JSX.Element {
  const start = status.value?.start ?? null
  return (
    <div class="invite" role="status">
      <Qr text={token} label="The invite as a QR code" />
      <div>
        <p>{placeElsewhere(start)}</p>
        <Command text={startElsewhere(start, `--join ${token}`)} label="Command to join" />
        <p class="quiet">
          It expires on {new Date(expires * 1000).toLocaleString()}. Add <code>--client</code> to only use the mesh from
          there. On a machine with other users run <code>{startElsewhere(start, '--join -')}</code> and paste the
          invite: they can read a program’s arguments.
        </p>
        <Copy text={token} label="Copy the invite only" />
      </div>
    </div>
  )
}

async function fetchInvite(seconds: number): Promise<InviteAnswer> {
  const answer = await fetch('/api/invite', {
    method: 'POST',
    headers: { ...consoleHeaders(), 'content-type': 'application/json' },
    body: JSON.stringify({ expires: seconds }),
  })
  if (!answer.ok) throw new Error(((await answer.json()) as ErrorAnswer).error.message)
  return (await answer.json()) as InviteAnswer
}

function Programs({ remote }: { remote: boolean }): JSX.Element {
  const names = chatModels(models.value).map((model) => model.name)
  const [wanted, setWanted] = useState('')
  const model = names.includes(wanted) ? wanted : (names[0] ?? 'MODEL')
  // On this machine a tab has a key only if the node requires it there, too.
  const needed = remote || key.value !== ''
  const list = clientSetups(api.value.replace(/\/v1$/, ''), model, needed ? KEY : null)
  // The same with the key, which is copied and not shown.
  const keyed = needed ? clientSetups(api.value.replace(/\/v1$/, ''), model, key.value) : list
  const [open, setOpen] = useState(list[0]?.name ?? '')
  const program = list.find((one) => one.name === open)
  const copied = keyed.find((one) => one.name === open)?.steps ?? []
  return (
    <section class="card" aria-labelledby="programs-title">
      <h2 id="programs-title">Programs</h2>
      <p>
        Programs for the OpenAI or Anthropic API work with {needed ? 'the API key of this node' : 'any API key'}. The
        API is at <code>{api}</code>.
      </p>
      {names.length > 1 && (
        <label class="line">
          <span>Model</span>
          <select value={model} onChange={(event) => setWanted(event.currentTarget.value)}>
            {names.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
      )}
      <div class="chips" role="group" aria-label="Program">
        {list.map((one) => (
          <button
            key={one.name}
            type="button"
            class="chip"
            aria-pressed={one.name === open}
            onClick={() => setOpen(one.name)}
          >
            {one.name}
          </button>
        ))}
      </div>
      {program?.steps.map(([title, text], index) => (
        <div key={text} class="step">
          <p>{title}</p>
          <Command text={text} copied={copied[index]?.[1] ?? null} label={`${program.name}: ${title}`} />
        </div>
      ))}
      {needed && <p class="quiet">Copy puts the API key of this tab in place of {KEY}.</p>}
    </section>
  )
}
