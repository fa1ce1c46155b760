import { defineConfig } from 'vitest/config'

// KaTeX offers each typeface in three formats; all browsers that show this page read the first one.
const oneFontFormat = {
  name: 'one-font-format',
  enforce: 'pre' as const,
  transform: (code: string, id: string) =>
    id.includes('katex.min.css')
      ? { code: code.replace(/,url\([^)]*\.(?:woff|ttf)\) format\("[a-z]+"\)/g, ''), map: null }
      : undefined,
}

export default defineConfig({
  plugins: [oneFontFormat],
  build: {
    outDir: 'dist',
    target: 'es2022',
    // No inlined assets: the content security policy does not allow them.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  test: { include: ['tests/**/*.test.ts'] },
})
