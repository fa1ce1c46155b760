"""Requests of `/v1/chat/completions` as the engine gets them, and their answers translated back."""

from __future__ import annotations

from typing import Any

import pytest

from meshllm.wire.api.chat_calls import ChatCalls, PlainLogprobs
from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api

USER = {"role": "user", "content": "hi"}


def messages(*given: Any, **fields: Any) -> Any:
    """The messages that the engine gets, or the refused parameter."""
    found = prepare(Api.CHAT, {"model": "m", "messages": list(given), **fields})
    if isinstance(found, Refusal):
        return found.param
    return found.body["messages"] if found.body is not None else list(given)


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}, **more}]}


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ({**USER, "name": None, "tool_call_id": None}, USER),
        ({"role": "assistant", "content": "a", "refusal": None, "audio": None}, {"role": "assistant", "content": "a"}),
        ({"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": "no"}),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        ),
        (
            {"role": "function", "name": "f", "content": "1"},
            {"role": "tool", "name": "f", "content": "1", "tool_call_id": "f"},
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
            {
                "role": "assistant",
                "tool_calls": [{"id": "f", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
        ),
        ({"role": "assistant", "content": "a", "tool_calls": []}, {"role": "assistant", "content": "a"}),
    ],
)
def test_messages_are_kept_without_what_the_engine_fails_on(message: Any, kept: Any) -> None:
    assert messages(message) == [kept]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", "{}"),
        ("  ", "{}"),
        (None, "{}"),
        ('{"a":1}', '{"a":1}'),
        ({"a": 1}, '{"a":1}'),
        ('{"a": "b', '{"invalid_arguments":"{\\"a\\": \\"b"}'),
        ("[1]", '{"invalid_arguments":"[1]"}'),
        ("{" * 100_000, '{"invalid_arguments":"' + "{" * 100_000 + '"}'),
    ],
)
def test_arguments_of_calls_are_the_text_of_an_object(given: Any, kept: str) -> None:
    (found,) = messages(call(given))
    assert found["tool_calls"] == [{"id": "c", "type": "function", "function": {"name": "f", "arguments": kept}}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (7, "messages[0]"),
        ({"content": "a"}, "messages[0].role"),
        ({"role": "boss", "content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 7}, "messages[0].content"),
        ({"role": "user", "content": [7]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": "a", "name": 7}, "messages[0].name"),
        ({"role": "assistant"}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": 7}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [7]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"type": "x"}]}, "messages[0].tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[0].tool_calls[0].function.name"),
    ],
)
def test_faults_of_messages_are_named(message: Any, param: str) -> None:
    assert messages(message) == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": 7}, "tools"),
        ({"tools": [7]}, "tools[0]"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 7}}]}, "tools[0].function.parameters"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": "json"}, "response_format"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"grammar": "root ::= x", "response_format": {"type": "json_object"}}, "grammar"),
    ],
)
def test_faults_of_fields_are_named(fields: dict[str, Any], param: str) -> None:
    assert messages(USER, **fields) == param


@pytest.mark.parametrize(
    "fields",
    [
        {"modalities": ["text"]},
        {"logprobs": False},
        {"tools": [{"type": "function", "function": {"name": "a"}}], "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "metadata": {"a": None}, "store": True, "user": "u", "unknown": [1]},
    ],
)
def test_what_the_engine_keeps_is_unchanged(fields: dict[str, Any]) -> None:
    assert prepare(Api.CHAT, {"model": "m", "messages": [USER], **fields}) is UNCHANGED


def test_null_fields_are_left_out() -> None:
    found = prepare(Api.CHAT, {"model": "m", "messages": [USER], "grammar": None, "stop": None, "tools": None})
    assert found == Prepared({"model": "m", "messages": [USER]})


def test_a_file_of_text_is_put_into_the_prompt() -> None:
    file = {"file_data": "data:text/plain;base64,aGVsbG8=", "filename": "a.txt"}
    (found,) = messages({"role": "user", "content": [{"type": "file", "file": file}]})
    assert found["content"] == [{"type": "text", "text": '<document title="a.txt">\nhello\n</document>'}]
    for bad in (
        {"file_id": "f"},
        {"file_data": "data:application/pdf;base64,JVBERg=="},
        {"file_data": "JVBERg=="},
        {"file_data": "!"},
    ):
        refused = messages({"role": "user", "content": [{"type": "file", "file": bad}]})
        assert str(refused).startswith("messages[0].content[0].file")


def chunk(content: str | None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    given = {**delta, **({} if content is None else {"content": content})}
    return {"choices": [{"index": 0, "delta": given, "finish_reason": finish}]}


def test_stream_of_an_enveloped_call_is_a_call() -> None:
    translator = ChatCalls("x")
    texts = ['{"na', 'me": "f", "argu', 'ments": {"a"', ": 1}", "}"]
    given = [chunk(None, role="assistant"), *(chunk(text) for text in texts), chunk(None, "stop")]
    deltas = [event["choices"][0] for one in given for event in translator.event(one)]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    calls = [entry for delta in deltas for entry in delta["delta"].get("tool_calls", ())]
    assert calls[0]["id"] == "call_x_0"
    assert calls[0]["function"]["name"] == "f"
    assert "".join(entry["function"]["arguments"] for entry in calls) == '{"a": 1}'
    assert [delta["finish_reason"] for delta in deltas if delta["finish_reason"]] == ["tool_calls"]
    assert not any(delta["delta"].get("content") for delta in deltas)


def test_whole_enveloped_call_and_answer() -> None:
    def whole(text: str) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        found = ChatCalls("x").whole({"choices": [choice]})["choices"][0]
        return {**found["message"], "finish": found["finish_reason"]}

    called = whole('{"name": "f", "arguments": {"a": 1}}')
    assert (called["content"], called["finish"]) == (None, "tool_calls")
    assert called["tool_calls"] == [
        {"id": "call_x_0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ]
    assert whole('{"answer": {"b": 2}}') == {"role": "assistant", "content": '{"b": 2}', "finish": "stop"}


def test_a_call_that_was_cut_says_so() -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": '{"name": "f", "arguments": {"a'},
        "finish_reason": "length",
    }
    found = ChatCalls("x").whole({"choices": [choice]})["choices"][0]
    assert (found["finish_reason"], found["message"]["tool_calls"][0]["function"]["arguments"]) == ("length", '{"a')
    events = ChatCalls("x").event(chunk('{"na', "length"))
    assert [event["choices"][0]["delta"]["content"] for event in events] == ['{"na']


def test_logprobs_without_alternatives() -> None:
    found = prepare(Api.CHAT, {"messages": [USER], "logprobs": True, "top_logprobs": 0})
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert found.body["top_logprobs"] == 1
    body = {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1, "top_logprobs": [{"token": "b"}]}]}}]}
    (event,) = PlainLogprobs().event(body)
    assert event["choices"][0]["logprobs"]["content"] == [{"token": "a", "logprob": -1, "top_logprobs": []}]
