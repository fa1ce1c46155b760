// How machines and programs come in: the invite, shown only when it is asked for; and commands that point agents here.

import { signal } from '@preact/signals'
import type { JSX } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import type { ErrorAnswer, InviteAnswer } from '../api'
import { chattable } from '../mesh/models'
import { Command, Copy } from '../parts/basics'
import { Icon } from '../parts/icons'
import { Qr } from '../parts/qr'
import { api, models, status } from '../state'
import { Devices, ReadOnly } from './devices'
import { programs } from './programs'

const TERMS: readonly [string, number][] = [
  ['Does not expire', 0],
  ['Good for 2 hours', 7200],
  ['Good for a day', 86_400],
  ['Good for a week', 604_800],
]

// Kept nowhere: it is gone as soon as the view is left.
const invite = signal<InviteAnswer | null>(null)

export function Join(): JSX.Element {
  const far = status.value?.read_only === true
  return (
    <section class="page narrow" aria-labelledby="join-title">
      <div class="head">
        <h1 id="join-title">Join</h1>
        <p>
          {far ? 'Point a program at the mesh.' : 'Add a machine to the mesh, or point a program or a phone at it.'}
        </p>
      </div>
      {!far && <Invite />}
      <Programs far={far} />
      {far ? <ReadOnly /> : <Devices />}
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
      <h2 id="invite-title">A machine</h2>
      <p>An invite lets in whoever has it. It is made when you ask for it, and shown to this machine alone.</p>
      <div class="line">
        <label>
          <span class="unseen">How long the invite is good</span>
          <select value={seconds} onChange={(event) => setSeconds(Number(event.currentTarget.value))}>
            {TERMS.map(([words, term]) => (
              <option key={term} value={term}>
                {words}
              </option>
            ))}
          </select>
        </label>
        <button type="button" class="button primary" onClick={() => void ask()}>
          <Icon name="eye" size={16} />
          {shown === null ? 'Show an invite' : 'Make another'}
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
      {shown !== null && <Shown invite={shown} />}
    </section>
  )
}

function Shown({ invite: { invite: token, expires } }: { invite: InviteAnswer }): JSX.Element {
  return (
    <div class="invite" role="status">
      <Qr text={token} label="The invite as a QR code" />
      <div>
        <p>On the other machine:</p>
        <Command text={`mesh-llm --join ${token}`} label="Command that joins" />
        <p class="quiet">
          {expires === 0 ? 'It does not expire.' : `It is refused after ${new Date(expires * 1000).toLocaleString()}.`}{' '}
          Add <code>--client</code> to only use the mesh from there.
        </p>
        <Copy text={token} label="Copy the invite alone" />
      </div>
    </div>
  )
}

async function fetchInvite(seconds: number): Promise<InviteAnswer> {
  const answer = await fetch('/api/invite', {
    method: 'POST',
    headers: { 'x-mesh-llm': 'invite', 'content-type': 'application/json' },
    body: JSON.stringify({ expires: seconds }),
  })
  if (!answer.ok) throw new Error(((await answer.json()) as ErrorAnswer).error.message)
  return (await answer.json()) as InviteAnswer
}

function Programs({ far }: { far: boolean }): JSX.Element {
  const names = chattable(models.value).map((model) => model.name)
  const [wanted, setWanted] = useState('')
  const model = names.includes(wanted) ? wanted : (names[0] ?? 'MODEL')
  const list = programs(api.value.replace(/\/v1$/, ''), model, far ? 'KEY' : null)
  const [open, setOpen] = useState(list[0]?.name ?? '')
  const program = list.find((one) => one.name === open)
  return (
    <section class="card" aria-labelledby="programs-title">
      <h2 id="programs-title">A program</h2>
      <p>
        Anything that speaks to OpenAI or Anthropic works, with {far ? 'the key of this node' : 'any key'}. The API is
        at <code>{api}</code>.
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
      {program?.steps.map(([words, text]) => (
        <div key={text} class="step">
          <p>{words}</p>
          <Command text={text} label={`${program.name}: ${words}`} />
        </div>
      ))}
    </section>
  )
}
