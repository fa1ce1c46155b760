// Reads many streams with one SDK and says how many were well-formed, as one line of JSON.
//
//   BASE_URL=http://127.0.0.1:9337 MODEL=name node run.mjs (chat|messages|responses|vercel) (emoji|tools) [COUNT] [AT_ONCE]
//
// emoji: the first token is half a character (a grammar forces it; /v1/messages passes none on, there a prefilled answer does).
// tools: the answer is a tool call (tool_choice forces it).

import Anthropic from "@anthropic-ai/sdk";
import { createOpenAI } from "@ai-sdk/openai";
import { jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";
import { checkMessageEvents, checkResponseEvents, insist } from "./checks.mjs";

const [api, kind, count = "40", atOnce = "4"] = process.argv.slice(2);
const { BASE_URL, MODEL } = process.env;
const SMILE = "🙂";
const GRAMMAR = `root ::= "${SMILE}" [a-z ]{1,6}`;
const QUESTION = kind === "tools" ? "What is the weather in Paris?" : "Say something nice.";
const OPENING = SMILE.repeat(8);
const SCHEMA = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const ABOUT = "The weather in a city";
const tools = kind === "tools";
const budget = tools ? 96 : 12;
const quiet = { apiKey: "none", maxRetries: 0 };

function checkCall(name, input) {
  insist(name === "weather", `called ${name}`);
  insist(typeof input?.city === "string", `arguments are ${JSON.stringify(input)}`);
}

async function chat() {
  const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, ...quiet });
  const stream = client.chat.completions.stream({
    model: MODEL,
    max_tokens: budget,
    temperature: 0,
    stream_options: { include_usage: true },
    messages: [{ role: "user", content: QUESTION }],
    ...(tools
      ? {
          tools: [{ type: "function", function: { name: "weather", description: ABOUT, parameters: SCHEMA } }],
          tool_choice: "required",
        }
      : { grammar: GRAMMAR }),
  });
  let first = null;
  stream.on("chunk", (chunk) => (first ??= chunk));
  const { choices, usage } = await stream.finalChatCompletion();
  insist(first.choices[0].delta.role === "assistant", "the first delta has no role");
  insist(choices[0].message.role === "assistant" && choices[0].finish_reason, "message lacks fields");
  insist(usage.completion_tokens > 0, "no usage");
  if (tools) {
    insist(choices[0].message.tool_calls?.length > 0, "no tool call");
    for (const { function: call } of choices[0].message.tool_calls) checkCall(call.name, JSON.parse(call.arguments));
  } else {
    insist(choices[0].message.content.startsWith(SMILE), "the text is not what was forced");
  }
}

async function messages() {
  const client = new Anthropic({ baseURL: BASE_URL, ...quiet });
  const stream = client.messages.stream({
    model: MODEL,
    max_tokens: budget,
    temperature: 0,
    messages: [
      { role: "user", content: QUESTION },
      ...(tools ? [] : [{ role: "assistant", content: OPENING }]),
    ],
    ...(tools
      ? { tools: [{ name: "weather", description: ABOUT, input_schema: SCHEMA }], tool_choice: { type: "any" } }
      : {}),
  });
  const events = [];
  stream.on("streamEvent", (event) => events.push(structuredClone(event)));
  const message = await stream.finalMessage();
  checkMessageEvents(events);
  insist(message.role === "assistant" && message.stop_reason, "message lacks fields");
  if (tools) {
    const calls = message.content.filter((block) => block.type === "tool_use");
    insist(calls.length > 0, "no tool call");
    for (const call of calls) checkCall(call.name, call.input);
  } else {
    insist(message.content[0].text.startsWith(SMILE), "the text is not what was forced");
  }
}

async function responses() {
  const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, ...quiet });
  const stream = client.responses.stream({
    model: MODEL,
    max_output_tokens: budget,
    temperature: 0,
    input: [{ type: "message", role: "user", content: QUESTION }],
    ...(tools
      ? {
          tools: [{ type: "function", name: "weather", description: ABOUT, parameters: SCHEMA, strict: false }],
          tool_choice: "required",
        }
      : { grammar: GRAMMAR }),
  });
  const events = [];
  for await (const event of stream) events.push(event);
  checkResponseEvents(events);
  const response = await stream.finalResponse();
  if (tools) {
    const calls = response.output.filter((item) => item.type === "function_call");
    insist(calls.length > 0, "no tool call");
    for (const call of calls) checkCall(call.name, JSON.parse(call.arguments));
    insist(events.some((event) => event.type === "response.function_call_arguments.done"), "arguments never done");
  } else {
    insist(response.output_text.startsWith(SMILE), "the text is not what was forced");
  }
}

async function vercel() {
  const provider = createOpenAI({
    baseURL: `${BASE_URL}/v1`,
    apiKey: "none",
    fetch: (url, init) =>
      fetch(url, tools ? init : { ...init, body: JSON.stringify({ ...JSON.parse(init.body), grammar: GRAMMAR }) }),
  });
  const failures = [];
  const result = streamText({
    model: provider.responses(MODEL),
    maxRetries: 0,
    maxOutputTokens: budget,
    temperature: 0,
    messages: [{ role: "user", content: QUESTION }],
    ...(tools
      ? { tools: { weather: tool({ description: ABOUT, inputSchema: jsonSchema(SCHEMA) }) }, toolChoice: "required" }
      : {}),
    onError: ({ error }) => failures.push(error),
  });
  let text = "";
  const calls = [];
  let finish = null;
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
    if (part.type === "tool-call") calls.push(part);
    if (part.type === "finish") finish = part;
  }
  if (failures.length) throw failures[0];
  insist(finish && finish.totalUsage.outputTokens > 0, "no proper finish");
  if (tools) {
    insist(calls.length > 0, "no tool call");
    for (const call of calls) checkCall(call.toolName, call.input);
  } else {
    insist(text.startsWith(SMILE), "the text is not what was forced");
  }
}

const one = { chat, messages, responses, vercel }[api];
const total = Number(count);
const failures = {};
let failed = 0;
let begun = 0;
await Promise.all(
  Array.from({ length: Number(atOnce) }, async () => {
    while (begun < total) {
      begun += 1;
      try {
        await one();
      } catch (error) {
        failed += 1;
        const said = `${error?.name}: ${error?.message}`.slice(0, 300);
        failures[said] = (failures[said] ?? 0) + 1;
      }
    }
  }),
);
console.log(JSON.stringify({ api, kind, total, failed, failures }));
process.exit(0);
