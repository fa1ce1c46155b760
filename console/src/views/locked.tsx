// What another device sees before it has the key: how to come by it, and where to put it.

import type { JSX } from 'preact'
import { useRef } from 'preact/hooks'
import { Icon } from '../parts/icons'
import { refused, unlock } from '../state'

export function Locked(): JSX.Element {
  const field = useRef<HTMLInputElement>(null)
  return (
    <section class="page narrow" aria-labelledby="locked-title">
      <div class="head">
        <h1 id="locked-title">This node wants its key</h1>
        <p>You have opened its console from another device.</p>
      </div>
      {refused.value && (
        <p class="notice bad" role="alert">
          <Icon name="warning" size={16} /> That is not the key of this node, or not any more.
        </p>
      )}
      {/* A form with a name in it, so that password managers know what to keep. */}
      <form
        class="card"
        onSubmit={(event) => {
          event.preventDefault()
          const text = field.current?.value.trim() ?? ''
          if (text !== '') unlock(text)
        }}
      >
        <input
          class="unseen"
          type="text"
          name="username"
          autocomplete="username"
          value="mesh-llm"
          readOnly
          tabIndex={-1}
          aria-hidden="true"
        />
        <label class="field">
          <span>Key</span>
          <input
            ref={field}
            type="password"
            name="password"
            autocomplete="current-password"
            autocapitalize="off"
            spellcheck={false}
            required
          />
        </label>
        <div class="line">
          <button type="submit" class="button primary">
            Open
          </button>
        </div>
        <p class="quiet">
          On the node’s own machine, the Join view shows a code that opens this page with the key in it. The key itself
          lies in the file <code>api-key</code> of the node’s home (<code>~/.mesh-llm</code>), or is what{' '}
          <code>MESH_LLM_API_KEY</code> was set to.
        </p>
        <p class="quiet">It is kept in this browser, for this tab only, and sent to this node alone.</p>
      </form>
    </section>
  )
}
