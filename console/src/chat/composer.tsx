// The input for a message: Enter sends, Shift+Enter starts a new line, Escape stops the answer. Images can be pasted,
// dropped or selected.

import type { JSX } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { Icon } from '../parts/icons'
import { asDataUrl, MAX_IMAGES } from './images'

interface ComposerProps {
  busy: boolean
  ready: boolean
  vision: boolean // false: the model is known not to accept images
  // False: another tab receives an answer in this chat.
  send: (text: string, images: string[]) => Promise<boolean>
  stop: () => void
}

export function Composer({ busy, ready, vision, send, stop }: ComposerProps): JSX.Element {
  const [text, setText] = useState('')
  const [images, setImages] = useState<string[]>([])
  const [problem, setProblem] = useState('')
  const area = useRef<HTMLTextAreaElement>(null)
  useEffect(() => {
    // Not on a phone, where the keyboard would hide the messages.
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
    // Independent of the focus.
    const listen = (event: KeyboardEvent): void => {
      if (event.key === 'Escape' && !event.isComposing) stop()
    }
    addEventListener('keydown', listen)
    return () => removeEventListener('keydown', listen)
  }, [busy, stop])
  const unsupported = !vision && images.length > 0
  const sendable = ready && !busy && !unsupported && (text.trim() !== '' || images.length > 0)
  const sending = useRef(false)
  const submit = async (): Promise<void> => {
    if (!sendable || sending.current) return
    sending.current = true
    try {
      const sent = await send(text.trim(), images)
      if (sent) {
        setText('')
        setImages([])
      }
      setProblem(
        sent ? '' : 'This chat is being answered in another tab. Send the message after that, or stop the answer.',
      )
    } finally {
      sending.current = false
    }
  }
  const add = async (files: Iterable<File>): Promise<void> => {
    setProblem('')
    for (const file of files) {
      try {
        const url = await asDataUrl(file)
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
        void submit()
      }}
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault()
        void add(imagesIn(event.dataTransfer))
      }}
    >
      {images.length > 0 && (
        <ul class="images">
          {images.map((url, index) => (
            <li key={url}>
              <img src={url} alt={`Image ${index + 1}`} />
              <button
                type="button"
                class="tool"
                title="Remove"
                onClick={() => setImages(images.filter((one) => one !== url))}
              >
                <Icon name="close" size={14} />
                <span class="unseen">Remove image {index + 1}</span>
              </button>
            </li>
          ))}
        </ul>
      )}
      {(problem !== '' || unsupported) && (
        <p class="notice worrying" role="alert">
          {unsupported ? 'This model does not support images. Remove the images, or select a vision model.' : problem}
        </p>
      )}
      <div class="box">
        {vision && (
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
          placeholder={ready ? 'Write a message' : 'No model is available yet'}
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onPaste={(event) => {
            const files = imagesIn(event.clipboardData)
            if (files.length === 0) return
            event.preventDefault()
            void add(files)
          }}
          onKeyDown={(event) => {
            // Enter also confirms a word in input method editors.
            if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
            event.preventDefault()
            void submit()
          }}
        />
        {busy ? (
          <button type="button" class="round" onClick={stop} title="Stop (Escape)">
            <Icon name="stop" />
            <span class="unseen">Stop</span>
          </button>
        ) : (
          <button type="submit" class="round" disabled={!sendable} title="Send">
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
