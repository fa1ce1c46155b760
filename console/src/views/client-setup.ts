// Settings that make other programs use this node's API. Pure.

export interface ClientSetup {
  name: string
  steps: [string, string][] // where the text goes, and the text
}

// `base` is the API's URL without `/v1`, `needed` the placeholder for the API key, null if no key is required.
export function clientSetups(base: string, model: string, needed: string | null = null): ClientSetup[] {
  const key = needed ?? 'none'
  const bearer = needed === null ? '' : ` -H ${quoted(`Authorization: Bearer ${needed}`)}`
  const body = JSON.stringify({ model, messages: [{ role: 'user', content: 'Say hello.' }] })
  const opencode = {
    $schema: 'https://opencode.ai/config.json',
    provider: {
      'mesh-llm': {
        npm: '@ai-sdk/openai-compatible',
        name: 'mesh-llm',
        options: { baseURL: `${base}/v1`, ...(needed === null ? {} : { apiKey: needed }) },
        models: { [model]: { name: model } },
      },
    },
  }
  const pi = {
    providers: {
      'mesh-llm': { baseUrl: `${base}/v1`, api: 'openai-completions', apiKey: key, models: [{ id: model }] },
    },
  }
  return [
    { name: 'curl', steps: [['In a shell:', `curl ${base}/v1/chat/completions${bearer} -d ${quoted(body)}`]] },
    {
      name: 'goose',
      steps: [
        [
          'In a shell:',
          `GOOSE_PROVIDER=openai OPENAI_HOST=${base} OPENAI_API_KEY=${quoted(key)} \\\n  GOOSE_MODEL=${quoted(model)} goose session`,
        ],
      ],
    },
    {
      name: 'Claude Code',
      steps: [
        [
          'In a shell:',
          `ANTHROPIC_BASE_URL=${base} ANTHROPIC_AUTH_TOKEN=${quoted(key)} \\\n  ANTHROPIC_MODEL=${quoted(model)} ANTHROPIC_SMALL_FAST_MODEL=${quoted(model)} claude`,
        ],
      ],
    },
    {
      name: 'opencode',
      steps: [
        ['In opencode.json:', JSON.stringify(opencode, null, 2)],
        ['Then:', `opencode --model ${quoted(`mesh-llm/${model}`)}`],
      ],
    },
    {
      name: 'pi',
      steps: [
        ['In ~/.pi/agent/models.json:', JSON.stringify(pi, null, 2)],
        ['Then:', `pi --provider mesh-llm --model ${quoted(model)}`],
      ],
    },
    {
      name: 'Python',
      steps: [
        [
          'With the openai package:',
          [
            'import openai',
            '',
            `client = openai.OpenAI(base_url="${base}/v1", api_key=${JSON.stringify(key)})`,
            'answer = client.chat.completions.create(',
            `    model=${JSON.stringify(model)},`,
            '    messages=[{"role": "user", "content": "Say hello."}],',
            ')',
            'print(answer.choices[0].message.content)',
          ].join('\n'),
        ],
      ],
    },
  ]
}

// Quotes a text for a shell: model names come from other machines and may contain anything.
export function quoted(text: string): string {
  return /^[\w./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}
