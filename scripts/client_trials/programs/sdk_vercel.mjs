// Vercel's AI SDK with three providers: text, stream, structured output, a required tool call.
import assert from 'node:assert'
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, jsonSchema, streamText, tool } from 'ai'

const base = process.env.BASE
const name = process.env.MODEL
const openai = createOpenAI({ baseURL: `${base}/v1`, apiKey: 'none' })
const models = {
  responses: openai(name),
  chat: openai.chat(name),
  compatible: createOpenAICompatible({ name: 'mesh', baseURL: `${base}/v1`, supportsStructuredOutputs: true })(name),
  anthropic: createAnthropic({ baseURL: `${base}/v1`, apiKey: 'none' })(name),
}
const schema = jsonSchema({
  type: 'object',
  properties: { age: { type: 'integer' } },
  required: ['age'],
  additionalProperties: false,
})
const weather = tool({
  description: 'The weather.',
  inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
})

for (const [kind, model] of Object.entries(models)) {
  const asked = { model, prompt: 'Say hi.', maxOutputTokens: 100, maxRetries: 0 }
  assert((await generateText(asked)).text, kind)
  let text = ''
  for await (const part of streamText(asked).textStream) text += part
  assert(text, kind)
  assert(Number.isInteger((await generateObject({ ...asked, schema })).object.age), kind)
  const called = await generateText({ ...asked, tools: { weather }, toolChoice: 'required' })
  assert.equal(called.toolCalls[0]?.toolName, 'weather', kind)
}
