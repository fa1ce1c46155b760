// Formats numbers for people. Pure.

// Decimal, as in the daemon's own messages.
const UNITS = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']

export function bytes(count: number): string {
  let value = count
  let unit = 0
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000
    unit += 1
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`
}

// A number of tokens: 32768 is "32k".
export function tokens(count: number): string {
  if (count >= 1024 && count % 1024 === 0) return `${count / 1024}k`
  return count >= 10_000 ? `${Math.round(count / 1000)}k` : String(count)
}

export function milliseconds(seconds: number): string {
  const ms = seconds * 1000
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`
}

// A measured time: milliseconds below a second.
export function seconds(value: number): string {
  if (value < 0.9995) return milliseconds(value)
  if (value < 60) return `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`
  return duration(value)
}

export function duration(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds))
  if (whole < 60) return `${whole} s`
  if (whole < 3600) return `${Math.floor(whole / 60)} min`
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`
}

// How long ago something was, in words: the largest unit alone.
export function ago(seconds: number): string {
  if (seconds < 45) return 'just now'
  if (seconds < 3600) return `${Math.max(1, Math.floor(seconds / 60))} min ago`
  return seconds < 86_400 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86_400)} d ago`
}

export function speed(tokensPerSecond: number): string {
  return `${tokensPerSecond < 10 ? tokensPerSecond.toFixed(1) : Math.round(tokensPerSecond)} tok/s`
}

export function percent(fraction: number): string {
  return `${Math.round(Math.min(1, Math.max(0, fraction)) * 100)} %`
}

export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString('en')} ${count === 1 ? one : many}`
}

// When something was, by the clock of this device: "18:53" today, else with the day. `now` in milliseconds.
export function clock(secondsAgo: number, now: number): string {
  const then = new Date(now - secondsAgo * 1000)
  const time = then.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })
  if (then.toDateString() === new Date(now).toDateString()) return time
  return `${then.toLocaleDateString([], { day: 'numeric', month: 'short' })} ${time}`
}

// Members that are away: "cellar last seen 18:53 (served Qwen3-8B)"; the first three, and how many more.
export function awayText(
  away: readonly { id: string; name: string; models: string[]; seen_seconds: number }[],
  now: number,
): string {
  const texts = away.slice(0, 3).map((one) => {
    const served = one.models.length === 0 ? '' : ` (served ${one.models.join(', ')})`
    return `${one.name || one.id.slice(0, 10)} last seen ${clock(one.seen_seconds, now)}${served}`
  })
  if (away.length > 3) texts.push(`${away.length - 3} more`)
  return texts.join(', ')
}
