// Structural sharing: unchanged parts of a new value keep their identity, so that components that show them are not
// rendered again.

type Json = null | boolean | number | string | Json[] | { [key: string]: Json }

// `after`, with each part that equals its counterpart in `before` replaced by that counterpart.
export function keepUnchanged<T>(before: T | undefined, after: T): T {
  return merged(before as Json | undefined, after as Json) as T
}

function merged(before: Json | undefined, after: Json): Json {
  if (before === after || before === undefined || before === null || after === null) return after
  if (typeof before !== 'object' || typeof after !== 'object') return after
  if (Array.isArray(after)) return Array.isArray(before) ? mergedList(before, after) : after
  return Array.isArray(before) ? after : mergedObject(before, after)
}

function mergedList(before: Json[], after: Json[]): Json[] {
  const keyed = new Map(before.map((item) => [keyOf(item), item]))
  let same = before.length === after.length
  const list = after.map((item, place) => {
    const key = keyOf(item)
    const part = merged(key === undefined ? before[place] : keyed.get(key), item)
    if (part !== before[place]) same = false
    return part
  })
  return same ? before : list
}

// Items of a list may move: an item with an id or a name is identified by it.
function keyOf(item: Json): string | undefined {
  if (item === null || typeof item !== 'object' || Array.isArray(item)) return undefined
  const key = item['id'] ?? item['name']
  return typeof key === 'string' ? key : undefined
}

function mergedObject(before: { [key: string]: Json }, after: { [key: string]: Json }): Json {
  const keys = Object.keys(after)
  let same = keys.length === Object.keys(before).length
  const object: { [key: string]: Json } = {}
  for (const key of keys) {
    const part = merged(before[key], after[key] as Json)
    object[key] = part
    if (part !== before[key] || !(key in before)) same = false
  }
  return same ? before : object
}
