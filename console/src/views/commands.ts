// Commands for the owner's shell, which run as they stand: built from how the node was started. Pure.

import type { StartStatus } from '../api'

// Stops this node and starts it again with its options and some more.
export function restartWith(start: StartStatus | null, options: string): string {
  const { program, command } = start ?? { program: 'mesh-llm', command: 'mesh-llm' }
  return `${program} stop && ${command} ${options}`
}

// Starts a node on another machine.
export function startElsewhere(start: StartStatus | null, options: string): string {
  return `${start?.elsewhere ?? 'mesh-llm'} ${options}`
}

// Where a command for another machine must be typed.
export function placeElsewhere(start: StartStatus | null): string {
  return start?.elsewhere.includes('/') === true
    ? 'On the other machine, in its folder of mesh-llm:'
    : 'On the other machine:'
}
