// Uploads and downloads of model files between this node and its peers, and files that are hashed before they are offered.

import type { JSX } from 'preact'
import type { TransferStatus } from '../api'
import { status } from '../state'
import { bytes } from '../format'

export function Transfers(): JSX.Element | null {
  const sharing = status.value?.sharing ?? null
  if (sharing === null) return null
  const { downloads, uploads, banned, checks, uploaded_bytes: uploaded } = sharing
  if (downloads.length + uploads.length + banned.length + checks.length === 0 && uploaded === 0) return null
  return (
    <section class="sharing" aria-labelledby="sharing-title">
      <h2 id="sharing-title">Model file transfers</h2>
      <p class="quiet">
        {sharing.upload_enabled ? `${bytes(uploaded)} uploaded` : 'Uploads are disabled'}
        {sharing.upload_limit === null ? '' : `, limited to ${bytes(sharing.upload_limit)}/s now`}.
      </p>
      <ul>
        {downloads.map((transfer) => (
          <Transfer key={`t ${transfer.peer} ${transfer.what}`} transfer={transfer} direction="from" />
        ))}
        {uploads.map((transfer) => (
          <Transfer key={`g ${transfer.peer} ${transfer.what}`} transfer={transfer} direction="to" />
        ))}
        {checks.map(({ file, percent }) => (
          <li key={`c ${file}`}>
            Checking the digest of {file} before it is offered: {percent} %
          </li>
        ))}
        {banned.map((one) => (
          <li key={`b ${one.peer}`}>
            No downloads from {one.name || one.peer.slice(0, 10)}: {one.reason}
          </li>
        ))}
      </ul>
    </section>
  )
}

function Transfer({ transfer, direction }: { transfer: TransferStatus; direction: 'from' | 'to' }): JSX.Element {
  const { name, peer, what, rate, transport } = transfer
  return (
    <li>
      {what} {direction} {name || peer.slice(0, 10)}: {bytes(transfer.bytes)}, {bytes(rate)}/s
      {transport === null ? '' : ` by ${transport === 'quic' ? 'QUIC' : transport}`}
    </li>
  )
}
