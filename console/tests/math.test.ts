import { marked } from 'marked'
import { describe, expect, test } from 'vitest'
import { inlineFormula, mathExtension } from '../src/chat/math'

marked.use(mathExtension(({ source, display }) => `<${display ? 'D' : 'I'}>${source}</>`))
const html = (text: string): string => String(marked.parse(text)).trim()

describe('formulas', () => {
  test('are found between all four kinds of marks', () => {
    expect(html('a $x_1 * y_2 * z$ b')).toBe('<p>a <I>x_1 * y_2 * z</> b</p>')
    expect(html('a \\(x_1\\) b')).toBe('<p>a <I>x_1</> b</p>')
    expect(html('a $$x$$ b')).toBe('<p>a <D>x</> b</p>')
    expect(html('a \\[x\\] b')).toBe('<p>a <D>x</> b</p>')
    expect(html('$$\nx\n\ny\n$$')).toBe('<p><D>x\n\ny</></p>')
    expect(html('Text:\n\\[\n\\frac{1}{2}\n\\]\nmore')).toBe('<p>Text:</p>\n<p><D>\\frac{1}{2}</></p><p>more</p>')
    expect(html('($x$), $y$. "$z$" – $w$')).toBe('<p>(<I>x</>), <I>y</>. &quot;<I>z</>&quot; – <I>w</></p>')
  })

  test('may begin with a digit if they are one word or have a sign', () => {
    for (const source of ['5', '3x', '2 + 2', '10^{5}', '1 \\leq n', '0.5'])
      expect(inlineFormula(`$${source}$`)?.source, source).toBe(source)
  })

  test('are not made of money, variables or code', () => {
    for (const text of [
      'It costs $5 and $10.',
      'from $5 to 10$',
      'US$5 and US$6',
      '$1,000 or $2,000',
      '$5-$10',
      '$HOME/$USER',
      '$ x $',
      '$$',
      '$a `b$` c',
      '`$x$`',
      '\\$x$',
      'a$b$c',
    ])
      expect(html(text), text).not.toMatch(/<[DI]>/)
    expect(html('```\n$x$ \\(y\\)\n```')).not.toMatch(/<[DI]>/)
    expect(html('costs $5, and $x$ is free')).toBe('<p>costs $5, and <I>x</> is free</p>')
  })

  // With quadratic time, these texts would take minutes.
  test('of many opening marks take linear time', { timeout: 60_000 }, () => {
    for (const mark of ['$', '$a ', '\\(', '$$ a', '\\[', '\n$$'])
      expect(html(mark.repeat(20_000)).length).toBeGreaterThan(20_000)
  })
})
