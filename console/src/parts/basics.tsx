// Small components that several views share.

import type { ComponentChildren, JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { percent } from '../format'
import { Icon, type IconName } from './icons'

export type Tone = 'good' | 'plain' | 'busy' | 'worrying' | 'bad'

export function Badge({ tone, children }: { tone: Tone; children: ComponentChildren }): JSX.Element {
  return <span class={`badge ${tone}`}>{children}</span>
}

// Copies `text` and confirms it for a moment, visibly and for screen readers.
export function Copy({
  text,
  label = 'Copy',
  quiet = false,
}: {
  text: string
  label?: string
  quiet?: boolean
}): JSX.Element {
  const [done, setDone] = useState(false)
  const timer = useRef<number | undefined>(undefined)
  useEffect(() => () => clearTimeout(timer.current), [])
  const copy = async (): Promise<void> => {
    await toClipboard(text)
    setDone(true)
    clearTimeout(timer.current)
    timer.current = setTimeout(() => setDone(false), 1600)
  }
  return (
    <>
      <button type="button" class={quiet ? 'tool' : 'button small'} title={label} onClick={() => void copy()}>
        <Icon name={done ? 'check' : 'copy'} size={16} />
        <span class={quiet ? 'unseen' : ''}>{done ? 'Copied' : label}</span>
      </button>
      <span class="unseen" role="status">
        {done ? 'Copied' : ''}
      </span>
    </>
  )
}

// navigator.clipboard exists in secure contexts only; elsewhere the selection is copied.
async function toClipboard(text: string): Promise<void> {
  // The type declarations say that it always exists.
  const clipboard = navigator.clipboard as Clipboard | undefined
  if (clipboard !== undefined) {
    await clipboard.writeText(text)
    return
  }
  const focused = document.activeElement
  const area = document.createElement('textarea')
  area.value = text
  area.className = 'unseen'
  area.setAttribute('aria-hidden', 'true')
  document.body.append(area)
  area.select()
  document.execCommand('copy')
  area.remove()
  if (focused instanceof HTMLElement) focused.focus()
}

export function Tool(props: { icon: IconName; label: string; onClick: () => void; danger?: boolean }): JSX.Element {
  return (
    <button
      type="button"
      class={`tool${props.danger === true ? ' danger' : ''}`}
      title={props.label}
      onClick={props.onClick}
    >
      <Icon name={props.icon} size={16} />
      <span class="unseen">{props.label}</span>
    </button>
  )
}

export interface BarPart {
  fraction: number
  kind: string // CSS class
}

// A bar of fractions. `label` describes it for screen readers.
export function Bar({ parts, label }: { parts: readonly BarPart[]; label: string }): JSX.Element {
  return (
    <div class="bar" role="img" aria-label={label}>
      {parts.map((part, index) => (
        <span key={index} class={part.kind} style={{ width: `${Math.min(100, Math.max(0, part.fraction * 100))}%` }} />
      ))}
    </div>
  )
}

export function Progress({ fraction, label }: { fraction: number | null; label: string }): JSX.Element {
  const known = fraction === null ? {} : { 'aria-valuenow': Math.round(fraction * 100) }
  return (
    <div class="progress">
      <div
        class={`bar${fraction === null ? ' unknown' : ''}`}
        role="progressbar"
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={100}
        {...known}
      >
        <span class="doing" style={{ width: fraction === null ? '30%' : `${fraction * 100}%` }} />
      </div>
      {fraction !== null && <span class="number">{percent(fraction)}</span>}
    </div>
  )
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }): JSX.Element {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  )
}

// A command or a piece of configuration with a copy button. `copied` is copied in place of the shown text, if it differs
// (a key); null: the text is an example that must be completed, and cannot be copied.
export function Command(props: { text: string; label: string; copied?: string | null }): JSX.Element {
  const { text, label, copied = text } = props
  return (
    <div class="command">
      <pre tabIndex={0} role="region" aria-label={label}>
        {text}
      </pre>
      {copied !== null && <Copy text={copied} label="Copy" quiet />}
    </div>
  )
}
