"""Requests of Ollama's API become requests of OpenAI's that mean the same, or are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.ollama_messages import chat_messages
from meshllm.wire.api.ollama_options import openai_fields, unloads
from meshllm.wire.api.ollama_request import AnswerForm, OllamaCall, model_of, translate_request
from meshllm.wire.api.ollama_routes import ROUTES, OllamaApi, find_ollama_route
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.routes import ROUTES as OPENAI_ROUTES
from meshllm.wire.api.routes import Api

PNG = "iVBORw0KGgoAAAANSUhEUg=="
HELLO = [{"role": "user", "content": "hello"}]
MODEL_APIS = (OllamaApi.CHAT, OllamaApi.GENERATE, OllamaApi.EMBED, OllamaApi.EMBEDDINGS)


def chat(**body: Any) -> OllamaCall:
    return translate_request(OllamaApi.CHAT, {"messages": HELLO, **body}, "m")


def generate(**body: Any) -> OllamaCall:
    return translate_request(OllamaApi.GENERATE, {"prompt": "hello", **body}, "m")


def refusal(api: OllamaApi, **body: Any) -> Refusal:
    with pytest.raises(RequestRefused) as refused:
        translate_request(api, body, "m")
    return refused.value.refusal


def test_plain_chat_is_a_stream_with_usage() -> None:
    call = chat()
    assert (call.api, call.path, call.form, call.streams) == (
        Api.CHAT,
        "/v1/chat/completions",
        AnswerForm.CHAT,
        True,
    )
    assert call.body == {
        "model": "m",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    whole = chat(stream=False)
    assert (whole.body, whole.streams) == ({"model": "m", "messages": HELLO}, False)


def test_options_have_openais_names() -> None:
    options = {
        "num_predict": 7.0,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 3,
        "stop": ["a", ""],
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "min_p": None,
        "num_ctx": 8192,
        "num_gpu": 99,
        "use_mmap": True,
        "unknown": 1,
    }
    assert openai_fields(options) == {
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 3,
        "stop": ["a"],
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
    }
    assert openai_fields({"num_predict": -1, "seed": -1}) == openai_fields(None) == {}
    assert openai_fields({"stop": "end"}) == {"stop": ["end"]}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ([], "options"),
        ({"temperature": "hot"}, "options.temperature"),
        ({"temperature": True}, "options.temperature"),
        ({"top_k": 1.5}, "options.top_k"),
        ({"num_ctx": "8k"}, "options.num_ctx"),
        ({"stop": [1]}, "options.stop"),
    ],
)
def test_options_of_another_type_are_refused_by_name(options: Any, param: str) -> None:
    for api in MODEL_APIS:
        body = {"messages": HELLO, "prompt": "hi", "input": "hi", "options": options}
        assert refusal(api, **body).param == param


def test_format_is_a_schema_of_the_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for ask in (chat, generate):
        assert ask(format="json").body["response_format"] == {"type": "json_object"}
        wanted = ask(format=schema).body["response_format"]
        assert wanted == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        assert "response_format" not in ask(format="").body
    assert generate(raw=True, format=schema).body["response_format"] == wanted
    assert refusal(OllamaApi.CHAT, messages=HELLO, format="xml").param == "format"


def test_thinking() -> None:
    assert chat(think=False).body["chat_template_kwargs"] == {"enable_thinking": False}
    high = chat(think="high").body
    assert (high["chat_template_kwargs"], high["reasoning_effort"]) == ({"enable_thinking": True}, "high")
    assert "chat_template_kwargs" not in chat().body
    for wrong in ("loud", 1, [], {}):
        assert refusal(OllamaApi.CHAT, messages=HELLO, think=wrong).param == "think"


def test_logprobs_are_passed_on() -> None:
    body = chat(logprobs=True, top_logprobs=2).body
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert refusal(OllamaApi.GENERATE, prompt="a", raw=True, logprobs=True).param == "logprobs"


def test_images_stand_before_the_text() -> None:
    parts = chat(messages=[{"role": "user", "content": "what is it?", "images": [PNG, "/9j/4AAQ"]}]).body["messages"]
    assert parts[0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ"}},
        {"type": "text", "text": "what is it?"},
    ]
    message = generate(images=[PNG]).body["messages"][0]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png")
    assert refusal(OllamaApi.CHAT, messages=[{"role": "user", "images": [1]}]).param == "messages[0].images"
    assert refusal(OllamaApi.GENERATE, prompt="a", images="x").param == "images"


def test_results_of_tools_find_their_calls() -> None:
    messages = chat_messages(
        [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [
                    {"function": {"name": "weather", "arguments": {"city": "Rome"}}},
                    {"function": {"name": "time", "arguments": {}}},
                    {"id": "x", "function": {"name": "weather", "arguments": {"city": "Oslo"}}},
                ],
            },
            {"role": "tool", "tool_name": "time", "content": "noon"},
            {"role": "tool", "tool_call_id": "x", "content": "cold"},
            {"role": "tool", "content": "warm"},
            {"role": "tool", "content": "of no call"},
        ]
    )
    calls = messages[1]["tool_calls"]
    assert [call["id"] for call in calls] == ["call_1", "call_2", "x"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Rome"}
    assert messages[1]["reasoning_content"] == "hm"
    assert [message["tool_call_id"] for message in messages[2:]] == ["call_2", "x", "call_1", "call_4"]


class Counted(str):
    """A name that counts how often it is compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("field", ["tool_call_id", "tool_name"])
def test_results_are_found_without_a_look_at_every_call(field: str) -> None:
    calls = [{"id": Counted(f"i{n}"), "function": {"name": Counted(f"i{n}")}} for n in range(500)]
    results: list[dict[str, Any]] = [{"role": "tool", field: Counted(f"i{n}")} for n in range(499, -1, -1)]
    messages = chat_messages([{"role": "assistant", "tool_calls": calls}, *results])
    assert [message["tool_call_id"] for message in messages[1:]] == [f"i{n}" for n in range(499, -1, -1)]
    Counted.compared = 0
    chat_messages([{"role": "assistant", "tool_calls": calls}, *results])
    assert Counted.compared < 5000


def test_tools_have_openais_shape() -> None:
    function = {"name": "weather", "parameters": {"type": "object"}}
    assert chat(tools=[{"function": function}]).body["tools"] == [{"type": "function", "function": function}]
    assert "tools" not in chat(tools=[]).body


def test_generate_with_system_and_raw() -> None:
    call = generate(system="be short", stream=False)
    assert call.form is AnswerForm.GENERATE
    assert call.body["messages"] == [{"role": "system", "content": "be short"}, *HELLO]
    raw = generate(raw=True, stream=False, options={"num_predict": 3})
    assert (raw.api, raw.form) == (Api.COMPLETIONS, AnswerForm.RAW)
    assert raw.body == {"model": "m", "prompt": "hello", "max_tokens": 3}


@pytest.mark.parametrize(
    ("field", "value"), [("suffix", "}"), ("template", "{{ .Prompt }}"), ("context", [1, 2]), ("prompt", 7)]
)
def test_what_changes_the_answer_and_cannot_be_kept_is_refused_by_name(field: str, value: Any) -> None:
    assert refusal(OllamaApi.GENERATE, **{"prompt": "a", field: value}).param == field
    if field in ("template", "context"):
        found = refusal(OllamaApi.GENERATE, **{"prompt": "a", "raw": True, field: value})
        assert found.message == "raw mode does not support template, system, or context"


def test_requests_without_a_prompt_load_the_model() -> None:
    for call, form in (
        (chat(messages=[]), AnswerForm.CHAT_LOADED),
        (translate_request(OllamaApi.GENERATE, {}, "m"), AnswerForm.GENERATE_LOADED),
    ):
        assert (call.api, call.form, call.body["max_tokens"]) == (Api.COMPLETIONS, form, 1)
        assert "stream" not in call.body
    assert translate_request(OllamaApi.EMBED, {}, "m").form is AnswerForm.EMBED_NOTHING
    assert translate_request(OllamaApi.EMBEDDINGS, {"prompt": ""}, "m").form is AnswerForm.EMBEDDING_NOTHING
    unload = refusal(OllamaApi.GENERATE, keep_alive=0)
    assert unload.param == "keep_alive"
    assert "mesh-llm drop" in unload.message


def test_keep_alive() -> None:
    assert [unloads(value) for value in (None, "5m", "1h30m", -1, 300, 1.5, "-1", 0, "0", "0s", "0h0m")] == [
        *(False,) * 7,
        *(True,) * 4,
    ]
    for wrong in ("soon", "", "5x", True, [], "5m" * 5000 + "x", "5m" * 5000):
        with pytest.raises(RequestRefused):
            unloads(wrong)
    assert chat(keep_alive=0).form is AnswerForm.CHAT  # answers, and has no effect


def test_embeddings() -> None:
    call = translate_request(OllamaApi.EMBED, {"input": ["a", "b"], "dimensions": 64, "truncate": True}, "m")
    assert (call.api, call.form, call.streams) == (Api.EMBEDDINGS, AnswerForm.EMBED, False)
    assert call.body == {"model": "m", "input": ["a", "b"], "dimensions": 64}
    old = translate_request(OllamaApi.EMBEDDINGS, {"prompt": "a"}, "m")
    assert (old.form, old.body) == (AnswerForm.EMBEDDING, {"model": "m", "input": "a"})
    assert refusal(OllamaApi.EMBED, input=[1]).param == "input"


def test_model_of_a_body() -> None:
    assert model_of({"model": "a"}) == model_of({"name": "a"}) == "a"
    wrongs: list[Any] = [{}, {"model": ""}, {"model": 1}, {"model": "a" * 513}, [], None, {"model": "a", "stream": 1}]
    for wrong in wrongs:
        with pytest.raises(RequestRefused):
            model_of(wrong)


def test_paths() -> None:
    assert not set(ROUTES) & set(OPENAI_ROUTES)
    for path, route in ROUTES.items():
        assert find_ollama_route(path) is find_ollama_route(f"{path}/") is route
        assert (route.api in (OllamaApi.REFUSED, OllamaApi.PULL)) == bool(route.advice)
    for path in ("/api", "/api/", "/api/chat/x", "/v1/api/chat", "/", ""):
        assert find_ollama_route(path) is None
    blobs = find_ollama_route("/api/blobs/sha256:00")
    assert blobs is not None
    assert blobs.api is OllamaApi.REFUSED


# -- any body

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": st.text(max_size=4), "arguments": VALUES})})
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(("system", "user", "assistant", "tool")) | VALUES, "content": st.text(max_size=8)},
    optional={
        "images": st.lists(st.text(max_size=8), max_size=2) | VALUES,
        "tool_calls": st.lists(CALLS, max_size=2) | VALUES,
        "tool_name": VALUES,
        "tool_call_id": VALUES,
        "thinking": VALUES,
    },
)
OPTION_NAMES = ("num_predict", "temperature", "top_k", "top_p", "seed", "stop", "num_ctx", "mirostat", "other")
OTHER_FIELDS = ("format", "think", "tools", "raw", "system", "suffix", "keep_alive", "images", "dimensions")
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGES, max_size=4) | VALUES,
        "prompt": st.text(max_size=8) | VALUES,
        "input": st.lists(st.text(max_size=8), max_size=3) | VALUES,
        "options": st.dictionaries(st.sampled_from(OPTION_NAMES), VALUES, max_size=4) | VALUES,
        "stream": st.booleans(),
        **dict.fromkeys(OTHER_FIELDS, VALUES),
    },
)


@given(st.sampled_from(MODEL_APIS), BODIES)
def test_any_body_is_translated_or_refused(api: OllamaApi, body: dict[str, Any]) -> None:
    try:
        call = translate_request(api, body, "m")
    except RequestRefused:
        return
    assert call.body["model"] == "m"
    assert (call.body.get("stream") is True) == (call.streams and "loaded" not in call.form.value)
    json.dumps(call.body)
    prepare(call.api, call.body)


@given(st.lists(MESSAGES, max_size=6))
def test_a_longer_conversation_begins_as_the_shorter_one(messages: list[dict[str, Any]]) -> None:
    """The prompt of a turn is the beginning of the next: hosts compute it once."""
    try:
        whole = chat_messages(messages)
    except RequestRefused:
        return
    for length in range(len(messages)):
        assert chat_messages(messages[:length]) == whole[:length]
