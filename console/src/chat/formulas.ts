// Draws formulas with KaTeX, which is loaded with the first one.
//
// Invariants: a formula is untrusted. KaTeX gets no trust (no links, pictures or HTML) and bounded sizes and expansions;
// macros cannot be defined; its output reaches the page as nodes from DOMPurify, with the properties of style below only.
// What is too long or not valid is shown as its source.

import { signal } from '@preact/signals'
import DOMPurify, { type Config } from 'dompurify'
import type { KatexOptions } from 'katex'
import { MAX_FORMULA, type Formula } from './math'

type Render = (source: string, options: KatexOptions) => string

// null: not loaded yet.
const render = signal<Render | null>(null)
export const formulasLoaded = render
let loading = false

// Definitions would multiply a short text into a large one.
const DEFINITION = /\\(?:[gex]?def|(?:re|provide)?newcommand|providecommand|(?:future)?let|global|long)(?![a-zA-Z])/
const OPTIONS: KatexOptions = {
  trust: false,
  strict: 'ignore', // no warnings: models write Unicode in formulas
  throwOnError: true,
  maxExpand: 200,
  maxSize: 20,
  output: 'htmlAndMathml',
}
const MAX_HTML = 400_000
const STYLE = 'data-style'
const CLEAN: Config & { RETURN_DOM_FRAGMENT: true } = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: (
    'span svg path line ' +
    'math semantics annotation mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover ' +
    'mtable mtr mtd mlabeledtr mstyle mpadded mphantom menclose mprescripts none'
  ).split(' '),
  ALLOWED_ATTR: (
    `class aria-hidden ${STYLE} xmlns width height viewBox preserveAspectRatio d x1 x2 y1 y2 stroke-width ` +
    'encoding display mathvariant mathcolor mathbackground mathsize scriptlevel displaystyle stretchy fence separator ' +
    'lspace rspace minsize maxsize symmetric accent accentunder linethickness columnalign columnspacing rowspacing ' +
    'columnlines rowlines rowalign notation voffset depth movablelimits side'
  ).split(' '),
  ADD_URI_SAFE_ATTR: [STYLE], // a property and its colon are no protocol
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
}
const PROPERTIES = new Set(
  (
    'height width min-width max-width vertical-align top bottom left right position margin margin-left margin-right ' +
    'margin-top margin-bottom padding padding-left padding-right border-bottom-width border-top-width border-right-width ' +
    'border-left-width border-width border-style border-color border-right-style border-top-style color ' +
    'background-color text-shadow font-size'
  ).split(' '),
)

const VALUE = /^[\w\s#.%+-]{1,60}$/
// The colours of a formula were chosen for black on white: mixed, they are legible in both themes.
const MIXES: Readonly<Record<string, string>> = {
  color: 'color-mix(in srgb, COLOUR 45%, var(--text))',
  'background-color': 'color-mix(in srgb, COLOUR 25%, transparent)',
}

async function load(): Promise<void> {
  if (loading) return
  loading = true
  try {
    const [katex] = await Promise.all([import('katex'), import('katex/dist/katex.min.css')])
    render.value = katex.default.renderToString
  } catch {
    // The page was updated, or the node is gone: sources are shown.
  }
}

const MAX_KEPT = 300
const kept = new Map<string, DocumentFragment | null>()

// The nodes of a formula; null if it is shown as its source.
export function drawn(formula: Formula): DocumentFragment | null {
  if (render.value === null) {
    void load()
    return null
  }
  const name = `${formula.display} ${formula.source}`
  let found = kept.get(name)
  if (found === undefined) {
    found = made(render.value, formula)
    if (kept.size >= MAX_KEPT) kept.delete(kept.keys().next().value as string)
    kept.set(name, found)
  }
  // A copy keeps the styles that were set through properties.
  return found === null ? null : (found.cloneNode(true) as DocumentFragment)
}

function made(draw: Render, { source, display }: Formula): DocumentFragment | null {
  if (source.length > MAX_FORMULA || DEFINITION.test(source)) return null
  let html: string
  try {
    html = draw(source, { ...OPTIONS, displayMode: display })
  } catch {
    return null
  }
  if (html.length > MAX_HTML) return null
  // The content security policy forbids style attributes. KaTeX escapes quotes in texts: this is always an attribute.
  const fragment = DOMPurify.sanitize(html.replaceAll(' style="', ` ${STYLE}="`), CLEAN)
  for (const element of fragment.querySelectorAll<HTMLElement | SVGElement>(`[${STYLE}]`)) {
    setStyle(element, element.getAttribute(STYLE) ?? '')
    element.removeAttribute(STYLE)
  }
  return fragment
}

function setStyle(element: HTMLElement | SVGElement, text: string): void {
  for (const one of text.split(';')) {
    const [property = '', value = ''] = one.split(':', 2).map((part) => part.trim())
    if (!PROPERTIES.has(property) || !VALUE.test(value)) continue
    const mixed = MIXES[property]?.replace('COLOUR', value) ?? value
    element.style.setProperty(property, mixed)
  }
}
