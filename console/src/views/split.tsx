// A pipeline split: the layers of each node, forecast and measured time per token, and the reason for the plan.

import type { JSX } from 'preact'
import type { SplitStatus, WorkerShareStatus } from '../api'
import { byLayer, layersText } from '../mesh/splits'
import { nodes } from '../state'
import { bytes, milliseconds } from '../format'

const MAX_PLANS = 6

export function Split({ split }: { split: SplitStatus }): JSX.Element {
  const shares = byLayer(split)
  return (
    <div class="shares">
      {shares.length > 0 && (
        <ol class="layers" aria-label={`Layers of ${split.model} by node`}>
          {shares.map((share) => (
            <Share key={share.node} share={share} />
          ))}
        </ol>
      )}
      {split.reason !== '' && <p>{split.reason}</p>}
      {(split.forecast !== null || split.measured !== null) && <p>{forecastText(split)}</p>}
      {split.deviation !== '' && <p>{sentence(split.deviation)}</p>}
      {shares.length > 0 && split.considered.length > 1 && (
        <details>
          <summary>Plans that were compared</summary>
          <ul>
            {split.considered.slice(0, MAX_PLANS).map((plan) => (
              <li key={plan.nodes.join()}>
                {plan.nodes.map(nameOf).join(' → ')}: {milliseconds(plan.seconds_per_token)} per token
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
  const facts = [
    `at most ${bytes(share.memory)}`,
    share.memory_used === null ? '' : `${bytes(share.memory_used)} now`,
    share.rtt === null ? '' : milliseconds(share.rtt),
    share.transport === 'quic' ? 'QUIC' : (share.transport ?? ''),
    share.rate === 0 ? '' : `${bytes(share.rate)}/s`,
  ].filter(Boolean)
  return (
    <li class={share.phase ?? 'host'} style={{ flexGrow: Math.max(1, share.layers) }}>
      <strong>{nameOf(share.node)}</strong>
      <span>
        {layersText(share)}
        {state}
      </span>
      <small>{facts.join(' · ')}</small>
    </li>
  )
}

function nameOf(id: string): string {
  return nodes.value.find((node) => node.id === id)?.name ?? id.slice(0, 10)
}

function forecastText({ forecast, measured, corrected }: SplitStatus): string {
  const word = corrected ? 'corrected forecast' : 'forecast'
  const predicted = forecast === null ? '' : `${word} ${milliseconds(forecast)} per token`
  const result = measured === null ? 'not measured yet' : `measured ${milliseconds(measured)}`
  return sentence([predicted, result].filter(Boolean).join(', '))
}

function sentence(text: string): string {
  return `${text[0]?.toUpperCase() ?? ''}${text.slice(1)}.`
}
