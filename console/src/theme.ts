// Light, dark, or as the system has it.

import { signal } from '@preact/signals'

export type Theme = 'system' | 'light' | 'dark'
const KEY = 'theme'
const NEXT: Record<Theme, Theme> = { system: 'light', light: 'dark', dark: 'system' }

function kept(): Theme {
  const text = localStorage.getItem(KEY)
  return text === 'light' || text === 'dark' ? text : 'system'
}

export const theme = signal<Theme>(kept())

function show(): void {
  const { dataset } = document.documentElement
  if (theme.value === 'system') delete dataset['theme']
  else dataset['theme'] = theme.value
}

export function turn(): void {
  theme.value = NEXT[theme.value]
  localStorage.setItem(KEY, theme.value)
  show()
}

show()
