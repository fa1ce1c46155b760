// Images for models that see: made small enough to be sent, in this browser.

// What a model looks at is scaled down to about this anyway; the API takes bodies of 64 MiB.
const MAX_SIDE = 1536
const QUALITY = 0.88
export const MAX_IMAGES = 8

// `file` as a data: address. Throws an Error that says what is wrong.
export async function asAddress(file: File): Promise<string> {
  let picture: ImageBitmap
  try {
    picture = await createImageBitmap(file)
  } catch {
    throw new Error(`${file.name} is no image that this browser can read.`)
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(picture.width, picture.height))
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(picture.width * scale))
  canvas.height = Math.max(1, Math.round(picture.height * scale))
  const context = canvas.getContext('2d')
  if (context === null) throw new Error('This browser cannot draw.')
  // What is seen through becomes white: JPEG knows nothing of it.
  context.fillStyle = '#fff'
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(picture, 0, 0, canvas.width, canvas.height)
  picture.close()
  return canvas.toDataURL('image/jpeg', QUALITY)
}
