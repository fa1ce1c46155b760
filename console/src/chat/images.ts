// Scales images for vision models down in the browser before they are sent.

// Vision models scale images to about this size; the API accepts bodies of up to 64 MiB.
const MAX_SIDE = 1536
const QUALITY = 0.88
export const MAX_IMAGES = 8

// `file` as a data: URL. Throws an Error with a message for the user.
export async function asDataUrl(file: File): Promise<string> {
  let picture: ImageBitmap
  try {
    picture = await createImageBitmap(file)
  } catch {
    throw new Error(`${file.name} cannot be read as an image by this browser.`)
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(picture.width, picture.height))
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(picture.width * scale))
  canvas.height = Math.max(1, Math.round(picture.height * scale))
  const context = canvas.getContext('2d')
  if (context === null) throw new Error('This browser does not support canvas drawing.')
  // JPEG has no transparency: transparent parts become white.
  context.fillStyle = '#fff'
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(picture, 0, 0, canvas.width, canvas.height)
  picture.close()
  return canvas.toDataURL('image/jpeg', QUALITY)
}
