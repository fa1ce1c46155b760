// The demand map: what the mesh is asked for, who serves it, and what is to come.

import type { JSX } from 'preact'
import type { DemandStatus } from '../api'
import { counted, percent } from '../format'
import { Bar } from '../parts/basics'
import { address } from '../route'
import { status } from '../state'

export function Demand(): JSX.Element | null {
  const mesh = status.value?.mesh ?? null
  if (mesh === null || mesh.demand.length === 0) return null
  const most = Math.max(...mesh.demand.map((entry) => entry.requests))
  return (
    <section class="demand" aria-labelledby="demand-title">
      <h2 id="demand-title">Demand</h2>
      <p class="quiet">
        What callers asked for lately on all nodes: a request counts half after 10 minutes. Nodes load and unload models
        by it.
      </p>
      <div class="table" role="region" aria-label="Demand by model" tabIndex={0}>
        <table>
          <thead>
            <tr>
              <th scope="col">Model</th>
              <th scope="col" class="number">
                Requests
              </th>
              <th scope="col" class="number">
                Waiting
              </th>
              <th scope="col" class="number">
                Hosts
              </th>
              <th scope="col" class="number">
                Loading
              </th>
              <th scope="col">What is next</th>
            </tr>
          </thead>
          <tbody>
            {mesh.demand.map((entry) => (
              <Row key={entry.model} entry={entry} most={most} />
            ))}
          </tbody>
        </table>
      </div>
    </section>
  )
}

// `most`: the requests of the model that is asked for most.
function Row({ entry, most }: { entry: DemandStatus; most: number }): JSX.Element {
  const fraction = most === 0 ? 0 : entry.requests / most
  return (
    <tr>
      <th scope="row">
        <a href={address('models', entry.model)}>{entry.model}</a>
      </th>
      <td class="number requests-share" title={`on ${counted(entry.nodes, 'node')}`}>
        {entry.requests.toLocaleString('en')}
        <Bar parts={[{ fraction, kind: 'doing' }]} label={`${percent(fraction)} of the largest`} />
      </td>
      <td class="number">{entry.waiting === 0 ? '' : entry.waiting}</td>
      <td class="number">{entry.hosts === 0 ? 'none' : entry.hosts}</td>
      <td class="number">{entry.loading === 0 ? '' : entry.loading}</td>
      <td class="next">{entry.outlook || (entry.hosts > 0 ? 'It is served.' : '')}</td>
    </tr>
  )
}
