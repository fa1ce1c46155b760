// The system prompt and the parameters of new chats in this browser.

import { signal } from '@preact/signals'
import { validParameters, type ChatParameters } from './parameters'

export interface ChatDefaults {
  system: string
  parameters: ChatParameters
}

const NAME = 'chat-defaults'
export const MAX_SYSTEM_LENGTH = 100_000

export const defaults = signal<ChatDefaults>(stored())

function stored(): ChatDefaults {
  try {
    const found = JSON.parse(localStorage.getItem(NAME) ?? '{}') as { system?: unknown; parameters?: unknown }
    const system = typeof found.system === 'string' ? found.system.slice(0, MAX_SYSTEM_LENGTH) : ''
    return { system, parameters: validParameters(found.parameters) }
  } catch {
    return { system: '', parameters: {} }
  }
}

export function setDefaults(next: ChatDefaults): void {
  defaults.value = next
  try {
    localStorage.setItem(NAME, JSON.stringify(next))
  } catch {
    // Storage is disabled: the defaults last as long as the page.
  }
}

// Another tab has changed them.
addEventListener('storage', (event) => {
  if (event.key === NAME) defaults.value = stored()
})
