// Who is on what: the claims that hold, with the time that is left.

import type { JSX } from 'preact'
import { useEffect, useState } from 'preact/hooks'
import { claims, nodeSeconds } from './board'
import { roomName, writerOf } from './message'
import { cleanedName } from './text'
import { standing, timeLeft } from './threads'

const SHOWN = 8
const MAX_SHOWN = 200
const SOON_SECONDS = 120

export function ClaimsStrip({ room }: { room: string | null }): JSX.Element | null {
  const [now, setNow] = useState(nodeSeconds)
  const [all, setAll] = useState(false)
  const some = claims.value.length > 0
  useEffect(() => {
    if (!some) return
    setNow(nodeSeconds())
    const timer = setInterval(() => setNow(nodeSeconds()), 1000)
    return () => clearInterval(timer)
  }, [some])
  const list = standing(claims.value, now).filter((claim) => room === null || claim.room === room)
  if (list.length === 0) return null
  const shown = list.slice(0, all ? MAX_SHOWN : SHOWN)
  return (
    <section class="claims" aria-labelledby="claims-title">
      <h2 id="claims-title">Who is on what</h2>
      {/* Scrolled on a phone. */}
      <div class="strip" role="region" aria-label="Claims" tabIndex={0}>
        <ul>
          {shown.map((claim) => (
            <li key={claim.id} class={claim.mine ? 'mine' : ''}>
              <p class="key" title={cleanedName(claim.key)}>
                <bdi>{cleanedName(claim.key)}</bdi>
              </p>
              <p class="quiet">
                <bdi>{writerOf(claim)}</bdi>
                {claim.program !== '' && ` · ${cleanedName(claim.program)}`}
                {claim.mine && ' · this node'}
                {room === null && ` · ${roomName(claim.room)}`}
              </p>
              <p class={`left${claim.until - now < SOON_SECONDS ? ' soon' : ''}`} role="timer">
                {timeLeft(claim.until - now)} left
              </p>
            </li>
          ))}
        </ul>
      </div>
      {list.length > SHOWN && (
        <button type="button" class="fold" aria-expanded={all} onClick={() => setAll(!all)}>
          {all ? 'Show fewer' : `Show ${Math.min(list.length, MAX_SHOWN) - SHOWN} more`}
        </button>
      )}
    </section>
  )
}
