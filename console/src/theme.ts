// Colour theme: light, dark, or that of the system. Stored in the browser.

import { signal } from '@preact/signals'

export type Theme = 'system' | 'light' | 'dark'
const KEY = 'theme'
const NEXT: Record<Theme, Theme> = { system: 'light', light: 'dark', dark: 'system' }

function storedTheme(): Theme {
  const text = localStorage.getItem(KEY)
  return text === 'light' || text === 'dark' ? text : 'system'
}

export const theme = signal<Theme>(storedTheme())

function apply(): void {
  const { dataset } = document.documentElement
  if (theme.value === 'system') delete dataset['theme']
  else dataset['theme'] = theme.value
}

export function nextTheme(): void {
  theme.value = NEXT[theme.value]
  localStorage.setItem(KEY, theme.value)
  apply()
}

apply()
