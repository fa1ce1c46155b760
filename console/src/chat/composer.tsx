// Where a message is written: Enter sends, Shift+Enter begins a line, Escape stops the answer; images are pasted, dropped
// or chosen.

import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { Icon } from '../parts/icons'
import { asAddress, MAX_IMAGES } from './images'

interface ComposerProps {
  busy: boolean
  ready: boolean
  sees: boolean // false: the model is known to take no images
  send: (text: string, images: string[]) => void
  stop: () => void
}

export function Composer({ busy, ready, sees, send, stop }: ComposerProps): JSX.Element {
  const [text, setText] = useState('')
  const [images, setImages] = useState<string[]>([])
  const [problem, setProblem] = useState('')
  const area = useRef<HTMLTextAreaElement>(null)
  useEffect(() => {
    // On a phone the keyboard would hide what is there to be read.
    if (matchMedia('(pointer: fine)').matches) area.current?.focus()
  }, [])
  useEffect(() => {
    const element = area.current
    if (element === null) return
    element.style.height = 'auto'
    element.style.height = `${Math.min(element.scrollHeight, 240)}px`
  }, [text])
  useEffect(() => {
    if (!busy) return
    // Wherever the focus is: whoever reads has it nowhere.
    const listen = (event: KeyboardEvent): void => {
      if (event.key === 'Escape' && !event.isComposing) stop()
    }
    addEventListener('keydown', listen)
    return () => removeEventListener('keydown', listen)
  }, [busy, stop])
  const unseen = !sees && images.length > 0
  const can = ready && !busy && !unseen && (text.trim() !== '' || images.length > 0)
  const submit = (): void => {
    if (!can) return
    send(text.trim(), images)
    setText('')
    setImages([])
    setProblem('')
  }
  const add = async (files: Iterable<File>): Promise<void> => {
    setProblem('')
    for (const file of files) {
      try {
        const url = await asAddress(file)
        setImages((known) => (known.length < MAX_IMAGES ? [...known, url] : known))
      } catch (error) {
        setProblem(error instanceof Error ? error.message : String(error))
      }
    }
  }
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault()
        submit()
      }}
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault()
        void add(imagesIn(event.dataTransfer))
      }}
    >
      {images.length > 0 && (
        <ul class="images">
          {images.map((url, place) => (
            <li key={url}>
              <img src={url} alt={`Image ${place + 1}`} />
              <button
                type="button"
                class="tool"
                title="Remove"
                onClick={() => setImages(images.filter((one) => one !== url))}
              >
                <Icon name="close" size={14} />
                <span class="unseen">Remove image {place + 1}</span>
              </button>
            </li>
          ))}
        </ul>
      )}
      {(problem !== '' || unseen) && (
        <p class="notice worrying" role="alert">
          {unseen ? 'This model cannot see. Remove the images, or choose one that does.' : problem}
        </p>
      )}
      <div class="box">
        {sees && (
          <label class="tool" title="Add images">
            <Icon name="image" />
            <span class="unseen">Add images</span>
            <input
              type="file"
              accept="image/*"
              multiple
              class="unseen"
              onChange={(event) => {
                void add([...(event.currentTarget.files ?? [])])
                event.currentTarget.value = ''
              }}
            />
          </label>
        )}
        <textarea
          ref={area}
          rows={1}
          aria-label="Message"
          placeholder={ready ? 'Write a message' : 'No model is served yet'}
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onPaste={(event) => {
            const files = imagesIn(event.clipboardData)
            if (files.length === 0) return
            event.preventDefault()
            void add(files)
          }}
          onKeyDown={(event) => {
            // Enter also ends the choice of a word in languages that are written so.
            if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
            event.preventDefault()
            submit()
          }}
        />
        {busy ? (
          <button type="button" class="round" onClick={stop} title="Stop (Escape)">
            <Icon name="stop" />
            <span class="unseen">Stop</span>
          </button>
        ) : (
          <button type="submit" class="round" disabled={!can} title="Send">
            <Icon name="send" />
            <span class="unseen">Send</span>
          </button>
        )}
      </div>
    </form>
  )
}

function imagesIn(data: DataTransfer | null): File[] {
  return [...(data?.files ?? [])].filter((file) => file.type.startsWith('image/'))
}
