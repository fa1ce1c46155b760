// Anthropic's JavaScript SDK: messages and a stream.
import assert from 'node:assert'
import Anthropic from '@anthropic-ai/sdk'

const client = new Anthropic({ baseURL: process.env.BASE, apiKey: 'none', maxRetries: 0 })
const asked = { model: process.env.MODEL, max_tokens: 16, messages: [{ role: 'user', content: 'Say hi.' }] }

assert((await client.messages.create(asked)).content[0].text)
assert((await client.messages.stream(asked).finalText()).length)
