// Other devices: on this machine, how they open the console; on another, what it can do there, and how it is locked.

import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import type { ErrorAnswer, KeyAnswer } from '../api'
import { withKey } from '../key'
import { Command, Copy } from '../parts/basics'
import { Icon } from '../parts/icons'
import { Qr } from '../parts/qr'
import { lock, status } from '../state'

export function Devices(): JSX.Element {
  const places = status.value?.lan_urls ?? []
  const [chosen, setChosen] = useState('')
  const [key, setKey] = useState('') // kept nowhere: it is gone as soon as the view is left
  const [problem, setProblem] = useState('')
  const url = places.includes(chosen) ? chosen : (places[0] ?? '')
  const ask = async (): Promise<void> => {
    setProblem('')
    try {
      setKey(await fetchKey())
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error))
    }
  }
  return (
    <section class="card" aria-labelledby="devices-title">
      <h2 id="devices-title">A phone, or another computer</h2>
      {url === '' ? (
        <>
          <p>
            This console and the API answer to this machine only. To open both to other devices, start the node with one
            more option:
          </p>
          <Command text="mesh-llm --listen-all" label="Option that lets other devices in" />
        </>
      ) : (
        <>
          <p>
            Other devices open this page, read-only, and chat with the key of this node. It goes over plain HTTP: for
            networks that you trust.
          </p>
          <div class="line">
            {places.length > 1 ? (
              <label>
                <span class="unseen">Address</span>
                <select value={url} onChange={(event) => setChosen(event.currentTarget.value)}>
                  {places.map((place) => (
                    <option key={place}>{place}</option>
                  ))}
                </select>
              </label>
            ) : (
              <code>{url}</code>
            )}
            <Copy text={url} label="Copy the address" />
            <button type="button" class="button primary" onClick={() => (key === '' ? void ask() : setKey(''))}>
              <Icon name="eye" size={16} />
              {key === '' ? 'Show the code and the key' : 'Hide the key'}
            </button>
          </div>
        </>
      )}
      {problem !== '' && (
        <p class="notice worrying" role="alert">
          {problem}
        </p>
      )}
      {key !== '' && url !== '' && (
        <div class="invite" role="status">
          <Qr text={withKey(url, key)} label="The console’s address and the key as a QR code" />
          <div>
            <p>
              Scan it with the phone: it opens this page there, with the key in it. Or open {url}, and give it this:
            </p>
            <Command text={key} label="Key of this node" />
            <p class="quiet">
              Whoever has the key can use the models of this node and see its console, but change nothing.
            </p>
          </div>
        </div>
      )}
    </section>
  )
}

async function fetchKey(): Promise<string> {
  const answer = await fetch('/api/key', { method: 'POST', headers: { 'x-mesh-llm': 'key' } })
  if (!answer.ok) throw new Error(((await answer.json()) as ErrorAnswer).error.message)
  return ((await answer.json()) as KeyAnswer).key
}

export function ReadOnly(): JSX.Element {
  return (
    <section class="card" aria-labelledby="read-only-title">
      <h2 id="read-only-title">Read-only from here</h2>
      <p>
        You look at this node from another device: you can see the mesh and chat. Invites, addresses, paths and the
        words of errors are shown on its own machine only; <code>mesh-llm invite</code> makes an invite there.
      </p>
      <div class="line">
        <button type="button" class="button" onClick={() => lock({ forgotten: true })}>
          Forget the key
        </button>
        <span class="quiet">It is kept for this tab only.</span>
      </div>
    </section>
  )
}
