// Uses a node's Ollama API with the official JavaScript client and LangChain's, and says what failed, as one line of JSON.
//
//   BASE_URL=http://127.0.0.1:9337 MODEL=name EMBEDDER=name CALLER=name node ollama.mjs
//
// The models are those of ../python/ollama_run.py.

import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOllama, OllamaEmbeddings } from "@langchain/ollama";
import { Ollama } from "ollama";
import { z } from "zod";
import { insist } from "./checks.mjs";

const { BASE_URL, MODEL, EMBEDDER, CALLER } = process.env;
const client = new Ollama({ host: BASE_URL });
const HELLO = [{ role: "user", content: "Say hello." }];
const QUESTION = { role: "user", content: "How is the weather in Rome?" };
const options = { temperature: 0, seed: 1, num_predict: 16 };
const SCHEMA = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "weather", description: "The weather", parameters: SCHEMA } }];
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

async function refused(status, words, call) {
  let failure = null;
  try {
    const found = await call();
    if (found?.[Symbol.asyncIterator]) for await (const _ of found);
  } catch (error) {
    failure = error;
  }
  insist(failure !== null, `no error: ${words}`);
  insist(failure.message.includes(words), `the error is: ${failure.message}`);
  insist(failure.status_code === status, `the status is ${failure.status_code}`);
}

const checks = {
  async list() {
    const names = (await client.list()).models.map((model) => model.model);
    insist([MODEL, EMBEDDER, CALLER].every((name) => names.includes(name)), `listed are ${names}`);
  },
  async show() {
    const shown = await client.show({ model: MODEL });
    insist(shown.capabilities.includes("completion"), "capabilities");
    insist(same((await client.show({ model: EMBEDDER })).capabilities, ["embedding"]), "capabilities of the embedder");
  },
  async ps() {
    const running = (await client.ps()).models.map((model) => model.model);
    insist(running.includes(MODEL), `running are ${running}`);
  },
  async version() {
    insist(/^\d+\.\d+\.\d+$/.test((await client.version()).version), "version");
  },
  async chat() {
    const whole = await client.chat({ model: MODEL, messages: HELLO, options });
    insist(whole.message.content && whole.done && whole.eval_count > 0, JSON.stringify(whole));
    let text = "";
    let last = null;
    for await (const part of await client.chat({ model: `${MODEL}:latest`, messages: HELLO, options, stream: true })) {
      text += part.message.content;
      last = part;
    }
    insist(text === whole.message.content, `streamed: ${text}`);
    insist(last.done && last.eval_count === whole.eval_count, JSON.stringify(last));
  },
  async generate() {
    const whole = await client.generate({ model: MODEL, prompt: "Say hello.", options });
    insist(whole.response && whole.done, JSON.stringify(whole));
    let text = "";
    for await (const part of await client.generate({ model: MODEL, prompt: "Say hello.", options, stream: true })) {
      text += part.response;
    }
    insist(text === whole.response, `streamed: ${text}`);
  },
  async format() {
    const { message } = await client.chat({ model: MODEL, messages: HELLO, format: SCHEMA, options: { seed: 1 } });
    insist(typeof JSON.parse(message.content).city === "string", message.content);
  },
  async abort() {
    const stream = await client.generate({ model: MODEL, prompt: "Count to 1000.", stream: true });
    let failure = null;
    try {
      for await (const _ of stream) stream.abort();
    } catch (error) {
      failure = error;
    }
    insist(failure?.name === "AbortError", `after an abort: ${failure}`);
  },
  async tools() {
    const whole = await client.chat({ model: CALLER, messages: [QUESTION], tools });
    insist(same(whole.message.tool_calls[0].function.arguments, { city: "Rome" }), JSON.stringify(whole));
    const calls = [];
    for await (const part of await client.chat({ model: CALLER, messages: [QUESTION], tools, stream: true })) {
      calls.push(...(part.message.tool_calls ?? []));
    }
    insist(calls.length === 1 && calls[0].function.name === "weather", JSON.stringify(calls));
    const result = { role: "tool", tool_name: "weather", content: "sunny in Rome" };
    const answer = await client.chat({ model: CALLER, messages: [QUESTION, whole.message, result], tools });
    insist(answer.message.content === "sunny", JSON.stringify(answer));
  },
  async embed() {
    const { embeddings } = await client.embed({ model: EMBEDDER, input: ["a cat", "a dog"] });
    insist(embeddings.length === 2 && embeddings[0].length > 8, "vectors");
    const { embedding } = await client.embeddings({ model: EMBEDDER, prompt: "a cat" });
    insist(embedding.length === embeddings[0].length, "the older form");
  },
  async errors() {
    await refused(404, "model 'nothing' not found", () => client.chat({ model: "nothing", messages: HELLO }));
    await refused(404, "not found", () => client.chat({ model: "nothing", messages: HELLO, stream: true }));
    await refused(404, "not found", () => client.show({ model: "nothing" }));
    await refused(400, "top_k", () => client.chat({ model: MODEL, messages: HELLO, options: { top_k: "x" } }));
    await refused(501, "mesh-llm download", () => client.pull({ model: "nothing" }));
    await refused(501, "mesh-llm", () => client.delete({ model: MODEL }));
  },
  async langchain() {
    const chat = new ChatOllama({ model: MODEL, baseUrl: BASE_URL, temperature: 0, numPredict: 16, seed: 1 });
    const whole = await chat.invoke([new HumanMessage("Say hello.")]);
    insist(whole.content.length > 0 && whole.usage_metadata.output_tokens > 0, JSON.stringify(whole));
    let text = "";
    for await (const part of await chat.stream([new HumanMessage("Say hello.")])) text += part.content;
    insist(text === whole.content, `streamed: ${text}`);
  },
  async langchain_tools() {
    const weather = tool(({ city }) => `sunny in ${city}`, {
      name: "weather",
      description: "The weather",
      schema: z.object({ city: z.string() }),
    });
    const chat = new ChatOllama({ model: CALLER, baseUrl: BASE_URL }).bindTools([weather]);
    const question = new HumanMessage(QUESTION.content);
    const answer = await chat.invoke([question]);
    insist(same(answer.tool_calls[0].args, { city: "Rome" }), JSON.stringify(answer));
    const result = new ToolMessage({ content: "sunny", tool_call_id: answer.tool_calls[0].id, name: "weather" });
    const end = await chat.invoke([question, answer, result]);
    insist(end.content === "sunny", JSON.stringify(end));
  },
  async langchain_embeddings() {
    const embeddings = new OllamaEmbeddings({ model: EMBEDDER, baseUrl: BASE_URL });
    insist((await embeddings.embedDocuments(["a", "b"])).length === 2, "vectors");
  },
};

const found = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    found[name] = "ok";
  } catch (error) {
    found[name] = `${error?.name}: ${error?.message}`.slice(0, 600);
  }
}
console.log(JSON.stringify(found));
process.exit(0);
