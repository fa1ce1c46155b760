// Writes the licences of the bundled packages to dist/assets/licences.txt.

import { readdirSync, readFileSync, writeFileSync } from 'node:fs'

const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8'))
// Direct dependencies, and the package that @preact/signals bundles.
const names = [...Object.keys(dependencies), '@preact/signals-core'].sort()

const texts = names.map((name) => {
  const folder = `node_modules/${name}`
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, 'utf8'))
  const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one))
  return `${name} ${version} (${license})\n\n${file === undefined ? '' : readFileSync(`${folder}/${file}`, 'utf8').trim()}\n`
})
writeFileSync('dist/assets/licences.txt', texts.join(`\n${'-'.repeat(78)}\n\n`))
