// The parameters of a chat: temperature, top-p, token limit and seed. Pure.
//
// Those of a chat are sent with each of its requests; an empty one is left to the model. New chats begin with the defaults
// of this browser.

export interface ChatParameters {
  temperature?: number
  topP?: number
  maxTokens?: number
  seed?: number
}
export type ParameterName = keyof ChatParameters

interface ParameterRule {
  label: string
  field: string // of the request
  least: number
  most: number
  whole: boolean
  help: string
}

// OpenAI's bounds; the engine takes the seed 2^32-1 for "random", and counts tokens in 31 bits.
export const PARAMETERS: Readonly<Record<ParameterName, ParameterRule>> = {
  temperature: {
    label: 'Temperature',
    field: 'temperature',
    least: 0,
    most: 2,
    whole: false,
    help: '0 to 2. Low: predictable; high: varied.',
  },
  topP: {
    label: 'Top-p',
    field: 'top_p',
    least: 0,
    most: 1,
    whole: false,
    help: '0 to 1. Samples from the likeliest tokens that make up this share.',
  },
  maxTokens: {
    label: 'Max tokens',
    field: 'max_tokens',
    least: 1,
    most: 2_147_483_647,
    whole: true,
    help: 'A whole number from 1. An answer ends after so many tokens.',
  },
  seed: {
    label: 'Seed',
    field: 'seed',
    least: 0,
    most: 4_294_967_294,
    whole: true,
    help: 'A whole number from 0 to 4294967294. Repeats an answer on the same node, as far as its engine can.',
  },
}
export const PARAMETER_NAMES = Object.keys(PARAMETERS) as ParameterName[]

function isValid(name: ParameterName, value: unknown): value is number {
  const { least, most, whole } = PARAMETERS[name]
  if (typeof value !== 'number' || !Number.isFinite(value) || value < least || value > most) return false
  return !whole || Number.isInteger(value)
}

// The value of a text: undefined if it is empty, null if it is not valid.
export function parseParameter(name: ParameterName, text: string): number | undefined | null {
  const trimmed = text.trim().replace(',', '.')
  if (trimmed === '') return undefined
  // `Number` also takes "0x10" and "1e3".
  if (!/^\d+(\.\d+)?$|^\.\d+$/.test(trimmed)) return null
  const value = Number(trimmed)
  return isValid(name, value) ? value : null
}

// The valid parameters of an untrusted value.
export function validParameters(value: unknown): ChatParameters {
  if (typeof value !== 'object' || value === null) return {}
  const found: ChatParameters = {}
  for (const name of PARAMETER_NAMES) {
    const one = (value as Record<string, unknown>)[name]
    if (isValid(name, one)) found[name] = one
  }
  return found
}

// The fields of a request.
export function requestFields(parameters: ChatParameters): Record<string, number> {
  const found: Record<string, number> = {}
  for (const name of PARAMETER_NAMES) {
    const value = parameters[name]
    if (value !== undefined) found[PARAMETERS[name].field] = value
  }
  return found
}

// The set parameters, such as "temperature 0.2".
export function parameterTexts(parameters: ChatParameters): string[] {
  return PARAMETER_NAMES.filter((name) => parameters[name] !== undefined).map(
    (name) => `${PARAMETERS[name].label.toLowerCase()} ${parameters[name]}`,
  )
}
