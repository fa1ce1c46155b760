// Access from other devices: on this machine, address and key; on another device, its limits.

import type { JSX } from 'preact'
import { useState } from 'preact/hooks'
import { fetchKey, urlWithKey } from '../key'
import { Command, Copy } from '../parts/basics'
import { Icon } from '../parts/icons'
import { Qr } from '../parts/qr'
import { lock, status } from '../state'
import { restartWith } from './commands'

export function Devices(): JSX.Element {
  const urls = status.value?.lan_urls ?? []
  const [chosen, setChosen] = useState('')
  const [key, setKey] = useState('') // not stored: dropped when the view is left
  const [problem, setProblem] = useState('')
  const url = urls.includes(chosen) ? chosen : (urls[0] ?? '')
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
      <h2 id="devices-title">Other devices</h2>
      {url === '' ? (
        <>
          <p>
            This console and the API accept connections from this machine only. To allow other devices, restart the node
            with one more option. In a terminal, which it then runs in:
          </p>
          <Command
            text={restartWith(status.value?.start ?? null, '--listen-all')}
            label="Command that allows other devices"
          />
        </>
      ) : (
        <>
          <p>
            Other devices can open this page read-only and chat, with the API key of this node. The connection is plain
            HTTP: use it in trusted networks only.
          </p>
          <div class="line">
            {urls.length > 1 ? (
              <label>
                <span class="unseen">Address</span>
                <select value={url} onChange={(event) => setChosen(event.currentTarget.value)}>
                  {urls.map((one) => (
                    <option key={one}>{one}</option>
                  ))}
                </select>
              </label>
            ) : (
              <code>{url}</code>
            )}
            <Copy text={url} label="Copy the address" />
            <button type="button" class="button primary" onClick={() => (key === '' ? void ask() : setKey(''))}>
              <Icon name="eye" size={16} />
              {key === '' ? 'Show the QR code and the key' : 'Hide the key'}
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
          <Qr text={urlWithKey(url, key)} label="The console’s address and the key as a QR code" />
          <div>
            <p>Scan the code with a phone to open this page there with the key. Or open {url} and enter this key:</p>
            <Command text={key} label="API key of this node" />
            <p class="quiet">
              The key allows to use the models of this node and to view its console, not to change anything.
            </p>
          </div>
        </div>
      )}
    </section>
  )
}

export function ReadOnly(): JSX.Element {
  return (
    <section class="card" aria-labelledby="read-only-title">
      <h2 id="read-only-title">Read-only access</h2>
      <p>
        From this device you can view the mesh and chat. Invites, addresses, paths and error messages are shown on the
        node’s own machine only; <code>mesh-llm invite</code> prints an invite there.
      </p>
      <div class="line">
        <button type="button" class="button" onClick={() => lock({ forgotten: true })}>
          Forget the key
        </button>
        <span class="quiet">The key is stored for this tab only.</span>
      </div>
    </section>
  )
}
