"""The real engine and model behind a real daemon, spoken to by the clients people use."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.daemons import Daemon

pytestmark = pytest.mark.engine

HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
}


@pytest.fixture
def client(served: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.base_url, api_key="none", max_retries=0, timeout=600) as made:
        yield made


@pytest.fixture
def claude(served: Daemon) -> Iterator[anthropic.Anthropic]:
    base = served.base_url.removesuffix("/v1")
    with anthropic.Anthropic(base_url=base, api_key="none", max_retries=0, timeout=600) as made:
        yield made


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        model="SmolLM2-135M-Instruct", messages=HELLO, max_tokens=24, temperature=0, **more
    )


def test_chat_whole_and_streamed_say_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, seed=1)
    assert whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.completion_tokens <= 24
    chunks = list(ask(client, seed=1, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model="SmolLM2-135M-Instruct", prompt="One, two, three,", max_tokens=8, temperature=0
    )
    stream = client.completions.create(
        model="SmolLM2-135M-Instruct", prompt="One, two, three,", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text != ""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_chat_calls_a_tool(client: openai.OpenAI, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}}
    asked = [{"role": "user", "content": "What is the weather in Rome?"}]
    common: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct",
        "messages": asked,
        "tools": [tool],
        "max_tokens": 100,
    }
    if stream:
        with client.chat.completions.stream(**common, tool_choice="required", temperature=0) as events:
            message: Any = events.get_final_completion().choices[0].message
    else:
        answer = client.chat.completions.create(**common, tool_choice="required", temperature=0)
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
    call = message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 31 degrees."}
    calls = [{"id": call.id, "type": "function", "function": json.loads(call.function.model_dump_json())}]
    for one in calls:
        one["function"].pop("parsed_arguments", None)  # type: ignore[attr-defined]
    after = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[*asked, {"role": "assistant", "content": "", "tool_calls": calls}, result],  # type: ignore[list-item]
        max_tokens=16,
        temperature=0,
    )
    assert after.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_messages_calls_a_tool(claude: anthropic.Anthropic, stream: bool) -> None:
    common: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "tools": [{"name": "weather", "description": "The weather.", "input_schema": WEATHER}],
        "tool_choice": {"type": "any"},
        "extra_body": {"temperature": 0},
    }
    if stream:
        with claude.messages.stream(**common) as events:
            message = events.get_final_message()
    else:
        message = claude.messages.create(**common)
    used = [block for block in message.content if block.type == "tool_use"]
    assert used[0].name == "weather"
    assert used[0].input["city"] in ("Paris", "Rome")  # type: ignore[index]
    assert message.stop_reason == "tool_use"


def test_messages_whole_streamed_and_counted(claude: anthropic.Anthropic) -> None:
    common: dict[str, Any] = {"model": "SmolLM2-135M-Instruct", "messages": HELLO}
    limits: dict[str, Any] = {"max_tokens": 16, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**common, **limits)
    with claude.messages.stream(**common, **limits) as stream:
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text != ""  # type: ignore[union-attr]
    assert final.stop_reason in ("end_turn", "max_tokens")
    counted = claude.messages.count_tokens(**common)
    assert counted.input_tokens > 5


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_responses(client: openai.OpenAI, stream: bool) -> None:
    common: dict[str, Any] = {"model": "SmolLM2-135M-Instruct", "input": "Say hello.", "temperature": 0}
    if stream:
        with client.responses.stream(**common) as events:
            numbers = [event.sequence_number for event in events]
            answer: Any = events.get_final_response()
        assert numbers == sorted(set(numbers))
    else:
        answer = client.responses.create(**common)
    assert answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_models_are_listed_for_both_kinds_of_client(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == ["SmolLM2-135M-Instruct", "auto"]
    assert [model.id for model in claude.models.list()] == ["SmolLM2-135M-Instruct", "auto"]
    assert client.models.retrieve("SmolLM2-135M-Instruct").owned_by == "mesh-llm"


def test_errors_are_typed_for_each_client(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="SmolLM", messages=HELLO)  # type: ignore[arg-type]
    assert unknown.value.code == "model_not_found"
    assert "SmolLM2-135M-Instruct" in unknown.value.message
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nope", max_tokens=5, messages=HELLO)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="SmolLM2-135M-Instruct", messages=[{"role": "nobody"}])  # type: ignore[list-item]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_prompt_larger_than_the_context_is_a_400(client: openai.OpenAI, stream: bool) -> None:
    prompt = [{"role": "user", "content": "word " * 6000}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="SmolLM2-135M-Instruct", messages=prompt, stream=stream)  # type: ignore[call-overload]
    assert refused.value.code == "context_length_exceeded"


def test_embeddings_and_rerank_say_what_a_chat_model_cannot_do(client: openai.OpenAI, served: Daemon) -> None:
    """This model was not made for either: the answer is an error that says so, never a hang and never nonsense."""
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model="SmolLM2-135M-Instruct", input="hello")
    assert refused.value.status_code in (400, 501)
    body = json.dumps({"model": "SmolLM2-135M-Instruct", "query": "a", "documents": ["b"]}).encode()
    request = urllib.request.Request(f"{served.base_url}/rerank", body, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as also:
        urllib.request.urlopen(request, timeout=60)
    with also.value as answer:
        assert answer.status in (400, 501)
        assert json.loads(answer.read())["error"]["message"]


def test_caller_that_disconnects_frees_its_slot(client: openai.OpenAI, served: Daemon) -> None:
    stream = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=HELLO,  # type: ignore[arg-type]
        stream=True,
        max_tokens=4000,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    events = urllib.request.urlopen(served.owner_request("/api/status"), timeout=30)
    with events as response:
        status = json.load(response)
    # The answer to another request shows that work goes on; the gateway's books show that nothing is left of the first.
    ask(client)
    with urllib.request.urlopen(served.owner_request("/api/status"), timeout=30) as response:
        status = json.load(response)
    assert [load["active"] for load in status["load"]] == [0]


def test_more_streams_than_slots_are_all_answered(client: openai.OpenAI) -> None:
    texts: list[str] = []

    def one() -> None:
        chunks = list(ask(client, stream=True))
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))

    threads = [threading.Thread(target=one, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 12
    assert all(texts)
