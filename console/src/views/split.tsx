// A model that several nodes carry: who has which layers, what was promised for a token and what came of it, and why.

import type { JSX } from 'preact'
import type { SplitStatus, WorkerShareStatus } from '../api'
import { inOrder, layersOf } from '../mesh/splits'
import { nodes } from '../state'
import { bytes, milliseconds } from '../words'

const MOST_WAYS = 6

export function Split({ split }: { split: SplitStatus }): JSX.Element {
  const shares = inOrder(split)
  return (
    <div class="shares">
      {shares.length > 0 && (
        <ol class="layers" aria-label={`Who carries ${split.model}`}>
          {shares.map((share) => (
            <Share key={share.node} share={share} />
          ))}
        </ol>
      )}
      {split.reason !== '' && <p>{split.reason}</p>}
      {(split.forecast !== null || split.measured !== null) && <p>{forecastWords(split)}</p>}
      {split.considered.length > 1 && (
        <details>
          <summary>The ways there were</summary>
          <ul>
            {split.considered.slice(0, MOST_WAYS).map((way) => (
              <li key={way.nodes.join()}>
                {way.nodes.map(nameOf).join(' → ')}: {milliseconds(way.seconds_per_token)} for a token
              </li>
            ))}
          </ul>
        </details>
      )}
    </div>
  )
}

function Share({ share }: { share: WorkerShareStatus }): JSX.Element {
  const state = share.phase === null || share.phase === 'committed' ? '' : `, ${share.detail || share.phase}`
  const how = [
    bytes(share.memory),
    share.rtt === null ? '' : milliseconds(share.rtt),
    share.transport === 'quic' ? 'QUIC' : (share.transport ?? ''),
    share.rate === 0 ? '' : `${bytes(share.rate)}/s`,
  ].filter(Boolean)
  return (
    <li class={share.phase ?? 'host'} style={{ flexGrow: Math.max(1, share.layers) }}>
      <strong>{nameOf(share.node)}</strong>
      <span>
        {layersOf(share)}
        {state}
      </span>
      <small>{how.join(' · ')}</small>
    </li>
  )
}

function nameOf(id: string): string {
  return nodes.value.find((node) => node.id === id)?.name ?? id.slice(0, 10)
}

function forecastWords({ forecast, measured }: SplitStatus): string {
  const promised = forecast === null ? '' : `forecast ${milliseconds(forecast)} for a token`
  const came = measured === null ? 'not measured yet' : `measured ${milliseconds(measured)}`
  const words = [promised, came].filter(Boolean).join(', ')
  return `${words[0]?.toUpperCase() ?? ''}${words.slice(1)}.`
}
