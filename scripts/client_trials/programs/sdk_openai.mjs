// OpenAI's JavaScript SDK: chat, stream, responses, a required tool call.
import assert from 'node:assert'
import OpenAI from 'openai'

const client = new OpenAI({ baseURL: `${process.env.BASE}/v1`, apiKey: 'none', maxRetries: 0 })
const model = process.env.MODEL
const messages = [{ role: 'user', content: 'Say hi.' }]
const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const tools = [{ type: 'function', function: { name: 'weather', description: 'The weather.', parameters } }]

const whole = await client.chat.completions.create({ model, messages, max_tokens: 16 })
assert(whole.choices[0].message.content)
let text = ''
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 16, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? ''
}
assert(text)
const called = await client.chat.completions.create({ model, messages, tools, tool_choice: 'required', max_tokens: 100 })
assert.equal(called.choices[0].message.tool_calls[0].function.name, 'weather')
assert((await client.responses.create({ model, input: 'Say hi.', max_output_tokens: 16 })).output_text)
