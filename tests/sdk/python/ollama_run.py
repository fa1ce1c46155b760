"""Uses a node's Ollama API with the official Python client and LangChain's, and says what failed, as one line of JSON.

    BASE_URL=http://127.0.0.1:9337 MODEL=name EMBEDDER=name CALLER=name python ollama_run.py

`MODEL` writes texts, `EMBEDDER` makes vectors, `CALLER` answers with a call of `weather` to every question with tools,
and with "sunny" to its result. Run by tests/sdk with the clients of `requirements.txt`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from typing import Any

import ollama
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM

BASE_URL, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
EMBEDDER, CALLER = os.environ["EMBEDDER"], os.environ["CALLER"]
HELLO = [{"role": "user", "content": "Say hello."}]
FIXED = {"temperature": 0, "seed": 1, "num_predict": 16, "num_ctx": 2048}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
client = ollama.Client(BASE_URL, timeout=600)


def weather(city: str) -> str:
    """The weather in a city.

    Args:
      city: the city
    """
    return f"sunny in {city}"


def expect(truth: object, what: object) -> None:
    if not truth:
        raise AssertionError(f"{what!r}")


def check_list() -> None:
    names = [model.model for model in client.list().models]
    expect({MODEL, EMBEDDER, CALLER} <= set(names), names)


def check_show() -> None:
    shown = client.show(MODEL)
    expect("completion" in (shown.capabilities or ()), shown)
    expect(any(key.endswith(".context_length") for key in shown.modelinfo or ()), shown)
    expect(client.show(EMBEDDER).capabilities == ["embedding"], client.show(EMBEDDER))


def check_ps() -> None:
    running = {model.model: model for model in client.ps().models}
    expect(MODEL in running, running)
    expect(running[MODEL].context_length == 2048, running[MODEL])
    expect(running[MODEL].expires_at is not None, running[MODEL])


def check_chat() -> None:
    whole = client.chat(MODEL, HELLO, options=FIXED, keep_alive="5m")
    expect(whole.message.role == "assistant" and whole.message.content, whole)
    expect(whole.done and whole.done_reason in ("stop", "length"), whole)
    expect(whole.prompt_eval_count and whole.eval_count and whole.eval_count <= 16, whole)
    expect(whole.total_duration and whole.eval_duration and whole.total_duration >= whole.eval_duration, whole)
    parts = list(client.chat(f"{MODEL}:latest", HELLO, options=FIXED, stream=True))
    expect("".join(part.message.content or "" for part in parts) == whole.message.content, parts)
    expect([part.done for part in parts] == [False] * (len(parts) - 1) + [True], parts)
    expect(parts[-1].eval_count == whole.eval_count, parts[-1])


def check_chat_async() -> None:
    async def ask() -> str:
        text = ""
        async for part in await ollama.AsyncClient(BASE_URL, timeout=600).chat(
            MODEL, HELLO, options=FIXED, stream=True
        ):
            text += part.message.content or ""
        return text

    expect(asyncio.run(ask()), "no text")


def check_generate() -> None:
    whole = client.generate(MODEL, "Say hello.", system="Be short.", options=FIXED)
    expect(whole.response and whole.done, whole)
    parts = list(client.generate(MODEL, "Say hello.", system="Be short.", options=FIXED, stream=True))
    expect("".join(part.response or "" for part in parts) == whole.response, parts)
    raw = client.generate(MODEL, "1, 2, 3, 4,", raw=True, options={**FIXED, "stop": ["9"]})
    expect(raw.response and "9" not in raw.response, raw)
    loaded = client.generate(MODEL)
    expect((loaded.response, loaded.done_reason) == ("", "load"), loaded)


def check_format() -> None:
    longer = {**FIXED, "num_predict": 256}
    answer = client.chat(MODEL, HELLO, format=SCHEMA, options=longer).message.content
    expect(json.loads(answer or "")["city"] in ("Paris", "Rome"), answer)
    written = client.generate(MODEL, "A small object of JSON.", format="json", options=longer)
    expect(written.done_reason == "length" or isinstance(json.loads(written.response), dict), written)


def check_tools() -> None:
    question: dict[str, Any] = {"role": "user", "content": "How is the weather in Rome?"}
    for stream in (False, True):
        answer: Any = client.chat(CALLER, [question], tools=[weather], stream=stream)
        parts = list(answer) if stream else [answer]
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        expect([(c.function.name, c.function.arguments) for c in calls] == [("weather", {"city": "Rome"})], parts)
        said = [part.message for part in parts if part.message.tool_calls]
        history = [question, *said, {"role": "tool", "tool_name": "weather", "content": "sunny in Rome"}]
        expect(client.chat(CALLER, history, tools=[weather]).message.content == "sunny", "no answer to a result")
    # A model without a place for tools in its template gets them as text.
    expect(client.chat(MODEL, HELLO, tools=[weather], options=FIXED).done, "no answer with tools")


def check_embed() -> None:
    found = client.embed(EMBEDDER, ["the cat sat", "the dog sat"])
    expect(len(found.embeddings) == 2, found)
    for vector in found.embeddings:
        expect(math.isclose(sum(number * number for number in vector), 1.0, rel_tol=1e-3), vector)
    expect(found.prompt_eval_count, found)
    old = client.embeddings(EMBEDDER, "the cat sat").embedding
    expect(all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(old, found.embeddings[0], strict=True)), old)


def refused(status: int, words: str, call: Any) -> None:
    try:
        found = call()
        if not isinstance(found, ollama.ProgressResponse):
            list(found)
    except ollama.ResponseError as error:
        expect(words in error.error and error.status_code == status, (error.error, error.status_code))
    else:
        raise AssertionError(f"no error: {words}")


def check_errors() -> None:
    refused(404, "model 'nothing' not found", lambda: client.chat("nothing", HELLO))
    refused(404, "not found", lambda: client.chat("nothing", HELLO, stream=True))
    refused(404, "not found", lambda: client.show("nothing"))
    refused(404, "not found", lambda: client.embed("nothing", "a"))
    refused(400, "temperature", lambda: client.chat(MODEL, HELLO, options={"temperature": -1}))
    refused(400, "insert", lambda: client.generate(MODEL, "a", suffix="b"))
    refused(400, "embed", lambda: client.embed(MODEL, "a"))
    refused(400, "embed", lambda: client.chat(EMBEDDER, HELLO))
    refused(400, "context", lambda: client.chat(MODEL, [{"role": "user", "content": "word " * 4000}]))
    refused(501, "mesh-llm download", lambda: client.pull("nothing"))
    refused(501, "mesh-llm", lambda: client.delete(MODEL))
    refused(501, "--alias", lambda: client.copy(MODEL, "other"))
    refused(501, "--model", lambda: client.create("other", from_=MODEL))
    refused(501, "mesh-llm", lambda: client.push(MODEL))
    expect(client.pull(MODEL).status == "success", "a model that is there needs no download")


def check_langchain() -> None:
    chat = ChatOllama(
        model=MODEL, base_url=BASE_URL, temperature=0, seed=1, num_predict=16, validate_model_on_init=False
    )
    whole = chat.invoke([HumanMessage("Say hello.")])
    expect(whole.content and whole.usage_metadata, whole)
    parts = list(chat.stream([HumanMessage("Say hello.")]))
    expect("".join(str(part.content) for part in parts) == whole.content, parts)
    llm = OllamaLLM(model=MODEL, base_url=BASE_URL, num_predict=8)
    expect(llm.invoke("Say hello."), "no text")
    ChatOllama(model=MODEL, base_url=BASE_URL, validate_model_on_init=True)


def check_langchain_tools() -> None:
    chat = ChatOllama(model=CALLER, base_url=BASE_URL).bind_tools([weather])
    question = HumanMessage("How is the weather in Rome?")
    answer = chat.invoke([question])
    expect([(c["name"], c["args"]) for c in answer.tool_calls] == [("weather", {"city": "Rome"})], answer)
    result = ToolMessage("sunny in Rome", tool_call_id=answer.tool_calls[0]["id"])
    expect(chat.invoke([question, answer, result]).content == "sunny", "no answer to a result")


def check_langchain_embeddings() -> None:
    embeddings = OllamaEmbeddings(model=EMBEDDER, base_url=BASE_URL)
    expect(len(embeddings.embed_documents(["a", "b"])) == 2, "two vectors")
    expect(len(embeddings.embed_query("a")) > 8, "one vector")


found: dict[str, str] = {}
for name, check in list(globals().items()):
    if name.startswith("check_"):
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever a client raises is a finding
            found[name.removeprefix("check_")] = f"{type(error).__name__}: {error}"[:600]
        else:
            found[name.removeprefix("check_")] = "ok"
print(json.dumps(found))
