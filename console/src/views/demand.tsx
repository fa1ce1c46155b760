// The demand map: what the mesh is asked for, who serves it, and what is to come.

import type { JSX } from 'preact'
import type { DemandStatus } from '../api'
import { counted } from '../format'
import { address } from '../route'
import { status } from '../state'

export function Demand(): JSX.Element | null {
  const mesh = status.value?.mesh ?? null
  if (mesh === null || mesh.demand.length === 0) return null
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
              <Row key={entry.model} entry={entry} />
            ))}
          </tbody>
        </table>
      </div>
    </section>
  )
}

function Row({ entry }: { entry: DemandStatus }): JSX.Element {
  return (
    <tr>
      <th scope="row">
        <a href={address('models', entry.model)}>{entry.model}</a>
      </th>
      <td class="number" title={`on ${counted(entry.nodes, 'node')}`}>
        {entry.requests.toLocaleString('en')}
      </td>
      <td class="number">{entry.waiting === 0 ? '' : entry.waiting}</td>
      <td class="number">{entry.hosts === 0 ? 'none' : entry.hosts}</td>
      <td class="number">{entry.loading === 0 ? '' : entry.loading}</td>
      <td class="next">{entry.outlook || (entry.hosts > 0 ? 'It is served.' : '')}</td>
    </tr>
  )
}
