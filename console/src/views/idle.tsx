// What stands in the mesh's place while this node serves nothing and knows nobody: how to change that.

import type { JSX } from 'preact'
import { Command } from '../parts/basics'

const WAYS: readonly [string, string][] = [
  ['Serve a model from the catalogue', 'mesh-llm --model SmolLM2-135M-Instruct'],
  ['Serve a model file', 'mesh-llm --model ./model.gguf'],
  ['Put a server that already runs into the pool', 'mesh-llm --backend http://localhost:8000'],
  ['Lend this machine to a mesh, and use its models', 'mesh-llm --join INVITE'],
]

export function Idle(): JSX.Element {
  return (
    <section class="idle" aria-labelledby="idle-title">
      <h2 id="idle-title">This node serves nothing yet</h2>
      <p>It runs and can be looked at. Stop it, and start it with one of these to change that:</p>
      <dl>
        {WAYS.map(([words, command]) => (
          <div key={command}>
            <dt>{words}</dt>
            <dd>
              <Command text={command} label={words} />
            </dd>
          </div>
        ))}
      </dl>
    </section>
  )
}
