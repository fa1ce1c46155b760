// Shown while this node serves no model and has no peers: commands that change that.

import type { JSX } from 'preact'
import { Command } from '../parts/basics'
import { address } from '../route'
import { status } from '../state'
import { mayAct } from './model-acts'
import { restartWith } from './commands'

interface Choice {
  title: string
  options: string
  example?: true // to be completed: it cannot be copied
}

const CHOICES: readonly Choice[] = [
  { title: 'Serve a model from the catalogue', options: '--model SmolLM2-135M-Instruct' },
  { title: 'Join a mesh, share this machine and use its models (it asks for the invite)', options: '--join -' },
  { title: 'Serve a model file, for example', options: '--model ./model.gguf', example: true },
  {
    title: 'Add a running OpenAI-compatible server, for example',
    options: '--backend http://localhost:8000',
    example: true,
  },
]

export function Idle(): JSX.Element {
  const start = status.value?.start ?? null
  return (
    <section class="idle" aria-labelledby="idle-title">
      <h2 id="idle-title">This node serves no model</h2>
      {mayAct() && (
        <p>
          <a href={address('models')}>Load a model</a> into the running node, or restart it with one of these commands:
        </p>
      )}
      {!mayAct() && <p>The node is running. To serve a model or join a mesh, restart it with one of these commands:</p>}
      <dl>
        {CHOICES.map(({ title, options, example }) => (
          <div key={options}>
            <dt>{title}</dt>
            <dd>
              <Command
                text={example === true ? options : restartWith(start, options)}
                label={title}
                {...(example === true ? { copied: null } : {})}
              />
            </dd>
          </div>
        ))}
      </dl>
    </section>
  )
}
