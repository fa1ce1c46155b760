// Model files on their way between this node and others: who gives what to whom, how fast, by which kind of link.

import type { JSX } from 'preact'
import type { TransferStatus } from '../api'
import { status } from '../state'
import { bytes } from '../words'

export function Sharing(): JSX.Element | null {
  const sharing = status.value?.sharing ?? null
  if (sharing === null) return null
  const { taking, giving, banned, given } = sharing
  if (taking.length + giving.length + banned.length === 0 && given === 0) return null
  return (
    <section class="sharing" aria-labelledby="sharing-title">
      <h2 id="sharing-title">Files exchanged with the mesh</h2>
      <p class="quiet">
        {sharing.shares ? `${bytes(given)} given so far` : 'This node gives none'}
        {sharing.limit === null ? '' : `, at most ${bytes(sharing.limit)} a second now`}.
      </p>
      <ul>
        {taking.map((transfer) => (
          <Transfer key={`t ${transfer.peer} ${transfer.what}`} transfer={transfer} way="from" />
        ))}
        {giving.map((transfer) => (
          <Transfer key={`g ${transfer.peer} ${transfer.what}`} transfer={transfer} way="to" />
        ))}
        {banned.map((one) => (
          <li key={`b ${one.peer}`}>
            Nothing is taken from {one.name || one.peer.slice(0, 10)} any more: {one.reason}
          </li>
        ))}
      </ul>
    </section>
  )
}

function Transfer({ transfer, way }: { transfer: TransferStatus; way: 'from' | 'to' }): JSX.Element {
  const { name, peer, what, rate, via } = transfer
  return (
    <li>
      {what} {way} {name || peer.slice(0, 10)}: {bytes(transfer.bytes)}, {bytes(rate)} a second
      {via === '' ? '' : ` by ${via === 'quic' ? 'QUIC' : via}`}
    </li>
  )
}
