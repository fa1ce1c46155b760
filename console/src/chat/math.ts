// Formulas in markdown: $...$, $$...$$, \(...\) and \[...\]. Pure.
//
// A dollar sign is also money and the mark of shell variables. $...$ is a formula only if no space follows the first sign
// or precedes the last one, and neither touches a letter or digit outside. One that begins with a digit must also contain
// a sign of TeX or arithmetic, or be one word.

import type { MarkedExtension, Tokens } from 'marked'

// The name of the token and of the class of its element.
const NAME = 'math'
// Longer ones are shown as text.
export const MAX_FORMULA = 4000

// The length is bounded, so that a text of opening marks takes linear time.
const INLINE_DOLLAR = /^\$(?![\s$])((?:\\[^\n]|[^\\$`\n]){1,4000}?)(?<!\s)\$(?![\w$])/
const INLINE_DISPLAY = /^\$\$(?!\$)((?:\\[^]|[^\\$`]){1,4000}?)\$\$(?!\$)/
const INLINE_ROUND = /^\\\(((?:\\[^()]|[^\\`]){1,4000}?)\\\)/
const INLINE_SQUARE = /^\\\[((?:\\[^[\]]|[^\\`]){1,4000}?)\\\]/
const BLOCK =
  /^ {0,3}(?:\$\$(?!\$)((?:\\[^]|[^\\$`]){1,4000}?)\$\$|\\\[((?:\\[^[\]]|[^\\`]){1,4000}?)\\\])[ \t]*(?:\n|$)/

// What makes a text that begins with a digit a formula.
const SIGN = /[\\^_{}=+*/<>]/

export interface Formula {
  source: string
  display: boolean
}

function isFormula(source: string): boolean {
  return !/^[\d.,]/.test(source) || SIGN.test(source) || !/\s/.test(source)
}

// The formula at the start of a line of text, and how much of it is the formula.
export function inlineFormula(text: string): (Formula & { raw: string }) | null {
  const display = INLINE_DISPLAY.exec(text) ?? INLINE_SQUARE.exec(text)
  if (display !== null) return { raw: display[0], source: (display[1] ?? '').trim(), display: true }
  const dollar = INLINE_DOLLAR.exec(text)
  const found = dollar !== null && isFormula(dollar[1] ?? '') ? dollar : INLINE_ROUND.exec(text)
  return found === null ? null : { raw: found[0], source: (found[1] ?? '').trim(), display: false }
}

// Where the next line begins that may be a formula of its own. `text` may begin within a line.
function nextBlock(text: string): number | undefined {
  const before = /\n {0,3}(?:\$\$|\\\[)/.exec(text)?.index
  return before === undefined ? undefined : before + 1
}

// Where the next formula may start; undefined if there is none. A sign behind a letter or digit is money: "US$5".
function nextStart(text: string): number | undefined {
  return /(?<![\w\\$])\$|\\[([]/.exec(text)?.index
}

export function mathExtension(element: (formula: Formula) => string): MarkedExtension {
  return {
    extensions: [
      {
        name: 'mathBlock',
        level: 'block',
        start: nextBlock,
        tokenizer: (text: string): Tokens.Generic | undefined => {
          const found = BLOCK.exec(text)
          if (found === null) return undefined
          return { type: 'mathBlock', raw: found[0], source: (found[1] ?? found[2] ?? '').trim() }
        },
        renderer: (token) => `<p>${element({ source: String(token['source']), display: true })}</p>`,
      },
      {
        name: NAME,
        level: 'inline',
        start: nextStart,
        tokenizer: (text: string): Tokens.Generic | undefined => {
          const found = inlineFormula(text)
          return found === null ? undefined : { type: NAME, ...found }
        },
        renderer: (token) => element({ source: String(token['source']), display: token['display'] === true }),
      },
    ],
  }
}
