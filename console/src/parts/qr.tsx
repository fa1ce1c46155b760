// A text as a QR code, black on white in both themes, as cameras expect it.

import type { JSX } from 'preact'
import { useMemo } from 'preact/hooks'
import { encode } from 'uqr'

export function Qr({ text, label }: { text: string; label: string }): JSX.Element {
  const { size, path } = useMemo(() => drawn(text), [text])
  return (
    <svg class="qr" viewBox={`0 0 ${size} ${size}`} role="img" aria-label={label} shape-rendering="crispEdges">
      <rect width={size} height={size} fill="#fff" />
      <path d={path} fill="#000" />
    </svg>
  )
}

function drawn(text: string): { size: number; path: string } {
  const { size, data } = encode(text, { ecc: 'L', border: 3 })
  let path = ''
  data.forEach((row, y) => {
    // One stroke for each run of dark squares.
    for (let x = 0; x < size; x += 1) {
      if (row[x] !== true) continue
      let end = x
      while (row[end + 1] === true) end += 1
      path += `M${x} ${y}h${end - x + 1}v1H${x}z`
      x = end
    }
  })
  return { size, path }
}
