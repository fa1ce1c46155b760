// Renders a model's text: markdown, tables, highlighted code.
//
// Invariants: the text is untrusted and reaches the page only as nodes from DOMPurify; nothing in it loads a resource:
// images become links. Complete blocks are rendered once. Formulas are drawn when KaTeX is loaded (`formulas.ts`).

import DOMPurify, { type Config } from 'dompurify'
import { marked, type Token, type Tokens } from 'marked'
import type { JSX } from 'preact'
import { useLayoutEffect, useMemo, useRef } from 'preact/hooks'
import { Copy } from '../parts/basics'
import { memo } from '../parts/memo'
import { drawn, formulasLoaded } from './formulas'
import { highlighted } from './highlight'
import { mathExtension } from './math'

const CLEAN: Config & { RETURN_DOM_FRAGMENT: true } = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: [
    'a',
    'b',
    'blockquote',
    'br',
    'code',
    'del',
    'em',
    'h1',
    'h2',
    'h3',
    'h4',
    'h5',
    'h6',
    'hr',
    'i',
    'input',
    'kbd',
    'li',
    'ol',
    'p',
    'pre',
    's',
    'span',
    'strong',
    'sub',
    'sup',
    'table',
    'tbody',
    'td',
    'th',
    'thead',
    'tr',
    'ul',
  ],
  ALLOWED_ATTR: ['href', 'title', 'class', 'start', 'align', 'type', 'checked', 'disabled'],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
}
const MATH = '<span class="math'
// Longer text is shown without markup.
const MAX_LENGTH = 400_000

marked.use({
  gfm: true,
  breaks: true,
  renderer: {
    image({ href, text }: Tokens.Image): string {
      return `<a href="${escaped(href)}">${escaped(text || href)}</a>`
    },
    // HTML is shown as text.
    html({ text }: Tokens.HTML | Tokens.Tag): string {
      return escaped(text)
    },
  },
})

marked.use(
  mathExtension(({ source, display }) => `<span class="math${display ? ' display' : ''}">${escaped(source)}</span>`),
)

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`)
}

export function Markdown({ text }: { text: string }): JSX.Element {
  const blocks = useMemo(() => split(text), [text])
  return (
    <div class="prose">
      {blocks.map((block, index) => (
        <Block key={index} {...block} />
      ))}
    </div>
  )
}

interface BlockProps {
  html: string | null // null: code
  code: string
  language: string
}

// Top-level blocks. While an answer streams, only the last block changes.
function split(text: string): BlockProps[] {
  if (text.length > MAX_LENGTH) return [{ html: `<p>${escaped(text)}</p>`, code: '', language: '' }]
  return marked
    .lexer(text)
    .filter((token) => token.type !== 'space')
    .map(blockOf)
}

function blockOf(token: Token): BlockProps {
  if (token.type === 'code') {
    const code = token as Tokens.Code
    return { html: null, code: code.text, language: (code.lang ?? '').split(/\s/, 1)[0] ?? '' }
  }
  return { html: marked.parser([token]) ?? '', code: '', language: '' }
}

const Block = memo(function Block({ html, code, language }: BlockProps): JSX.Element {
  return html === null ? <Code code={code} language={language} /> : <Html html={html} />
})

function Html({ html }: { html: string }): JSX.Element {
  const container = useRef<HTMLDivElement>(null)
  // Rendered again when KaTeX has been loaded.
  const drawable = html.includes(MATH) && formulasLoaded.value !== null
  useLayoutEffect(() => container.current?.replaceChildren(cleaned(html)), [html, drawable])
  return <div ref={container} />
}

function cleaned(html: string): DocumentFragment {
  const fragment = DOMPurify.sanitize(html, CLEAN)
  for (const link of fragment.querySelectorAll('a')) {
    link.target = '_blank'
    link.rel = 'noopener noreferrer'
  }
  for (const table of fragment.querySelectorAll('table')) {
    const frame = document.createElement('div')
    frame.className = 'table'
    makeScrollable(frame, 'Table')
    table.replaceWith(frame)
    frame.append(table)
  }
  for (const formula of fragment.querySelectorAll<HTMLElement>('span.math')) {
    const nodes = drawn({ source: formula.textContent ?? '', display: formula.classList.contains('display') })
    if (nodes !== null) {
      formula.replaceChildren(nodes)
      if (formula.classList.contains('display')) makeScrollable(formula, 'Formula')
    } else if (formulasLoaded.value !== null) formula.classList.add('wrong')
  }
  for (const box of fragment.querySelectorAll('input')) box.setAttribute('aria-label', box.checked ? 'done' : 'to do')
  return fragment
}

// Makes an element that may be wider than the page reachable by keyboard.
function makeScrollable(element: HTMLElement, name: string): void {
  element.tabIndex = 0
  element.setAttribute('role', 'region')
  element.setAttribute('aria-label', name)
}

function Code({ code, language }: { code: string; language: string }): JSX.Element {
  const container = useRef<HTMLElement>(null)
  useLayoutEffect(() => {
    const html = highlighted(code, language)
    if (html === null) container.current?.replaceChildren(code)
    else container.current?.replaceChildren(DOMPurify.sanitize(html, CLEAN))
  }, [code, language])
  return (
    <figure class="code">
      <figcaption>
        <span>{language || 'text'}</span>
        <Copy text={code} label="Copy the code" quiet />
      </figcaption>
      <pre tabIndex={0} role="region" aria-label={`Code${language === '' ? '' : ` in ${language}`}`}>
        <code ref={container} />
      </pre>
    </figure>
  )
}
