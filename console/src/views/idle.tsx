// Shown while this node serves no model and has no peers: commands that change that.

import type { JSX } from 'preact'
import { Command } from '../parts/basics'

const COMMANDS: readonly [string, string][] = [
  ['Serve a model from the catalogue', 'mesh-llm --model SmolLM2-135M-Instruct'],
  ['Serve a model file', 'mesh-llm --model ./model.gguf'],
  ['Add a running OpenAI-compatible server', 'mesh-llm --backend http://localhost:8000'],
  ['Join a mesh, share this machine and use its models', 'mesh-llm --join INVITE'],
]

export function Idle(): JSX.Element {
  return (
    <section class="idle" aria-labelledby="idle-title">
      <h2 id="idle-title">This node serves no model</h2>
      <p>The node is running. To serve a model or join a mesh, stop it and start it with one of these commands:</p>
      <dl>
        {COMMANDS.map(([title, command]) => (
          <div key={command}>
            <dt>{title}</dt>
            <dd>
              <Command text={command} label={title} />
            </dd>
          </div>
        ))}
      </dl>
    </section>
  )
}
