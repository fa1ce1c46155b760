// Asks for the API key on another device.

import type { JSX } from 'preact'
import { useRef } from 'preact/hooks'
import { Icon } from '../parts/icons'
import { keyRejected, unlock } from '../state'

export function KeyPrompt(): JSX.Element {
  const field = useRef<HTMLInputElement>(null)
  return (
    <section class="page narrow" aria-labelledby="locked-title">
      <div class="head">
        <h1 id="locked-title">Enter the API key of this node</h1>
        <p>Access from another device requires the API key.</p>
      </div>
      {keyRejected.value && (
        <p class="notice bad" role="alert">
          <Icon name="warning" size={16} /> The key is wrong or has been changed.
        </p>
      )}
      {/* With a user name, so that password managers can store the key. */}
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
          On the node’s own machine, the Join view shows a QR code that opens this page with the key. The key is in the
          file <code>api-key</code> of the node’s home directory (<code>~/.mesh-llm</code>), or in the environment
          variable <code>MESH_LLM_API_KEY</code>.
        </p>
        <p class="quiet">The key is stored in this browser for this tab only, and sent to this node only.</p>
      </form>
    </section>
  )
}
