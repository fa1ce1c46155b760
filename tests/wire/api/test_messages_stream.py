"""Streams of /v1/messages follow Anthropic's grammar and lose no text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_helpers import check_messages, cuts, event, garbage, read, repairer, run, typed

from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import PING
from meshllm.wire.api.stream_repair import repair_response, stream_repair

USAGE = {"cache_read_input_tokens": 3, "input_tokens": 7, "output_tokens": 0}
MESSAGE = {
    "id": "chatcmpl-x",
    "type": "message",
    "role": "assistant",
    "content": [],
    "model": "m",
    "stop_reason": None,
    "stop_sequence": None,
    "usage": USAGE,
}
BEGIN = typed("message_start", message=MESSAGE)
DELTA_KIND = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


def start(index: int, kind: str, **fields: Any) -> bytes:
    return typed("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(index: int, kind: str, text: str) -> bytes:
    word, key = DELTA_KIND.get(kind, ("input_json_delta", "partial_json"))
    return typed("content_block_delta", index=index, delta={"type": word, key: text})


def stop(index: int) -> bytes:
    return typed("content_block_stop", index=index)


def ending(reason: str = "end_turn") -> bytes:
    told = typed("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 9})
    return told + typed("message_stop")


def blocks(events: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """(type, content) of each block."""
    found: list[list[str]] = []
    for name, data in events:
        if name == "content_block_start":
            found.append([data["content_block"]["type"], ""])
        elif name == "content_block_delta":
            found[-1][1] += next(value for key, value in data["delta"].items() if key != "type")
    return [(kind, text) for kind, text in found]


def good(out: bytes) -> list[tuple[str, Any]]:
    events = read(out)
    check_messages(events)
    assert events[-1][0] == "message_stop"
    return events


PLAIN = BEGIN + start(0, "text", text="") + delta(0, "text", "Hel") + delta(0, "text", "lo") + stop(0) + ending()


@given(cuts)
def test_messages_repair_passes_valid_events_unchanged(places: list[int]) -> None:
    out, repair = run(Api.MESSAGES, PLAIN, places)
    events = good(out)
    assert delta(0, "text", "Hel") + delta(0, "text", "lo") + stop(0) in out
    assert blocks(events) == [("text", "Hello")]
    assert events[0][1]["message"]["usage"] == {**USAGE, "cache_creation_input_tokens": 0}
    assert events[-2][1]["usage"] == {**USAGE, "output_tokens": 9}
    assert repair.complete
    assert not repair.failed


@given(cuts)
def test_messages_repair_adds_a_missing_message_start(places: list[int]) -> None:
    for stream in (PLAIN.removeprefix(BEGIN), ending(), PING + ending()):
        good(run(Api.MESSAGES, stream, places)[0])
    repair = stream_repair(Api.MESSAGES, model="m", ident="q", created=0, request={}, input_tokens=42)
    events = good(repair.feed(ending("max_tokens")))
    assert events[0][1]["message"]["id"] == "msg_q"
    assert events[0][1]["message"]["usage"]["input_tokens"] == 42
    assert events[1][1]["usage"]["input_tokens"] == 42
    assert events[1][1]["delta"]["stop_reason"] == "max_tokens"


@given(cuts)
def test_messages_repair_orders_overlapping_blocks(places: list[int]) -> None:
    tools = [
        start(2, "tool_use", id="a", name="f") + delta(2, "tool_use", '{"x":') + delta(2, "tool_use", "1}"),
        start(3, "tool_use", id="b", name="g") + delta(3, "tool_use", "{}"),
    ]
    thinking = start(0, "thinking", thinking="") + delta(0, "thinking", "hm")
    signature = typed("content_block_delta", index=0, delta={"type": "signature_delta", "signature": ""})
    text = start(1, "text", text="") + delta(1, "text", "Hi")
    again = start(3, "tool_use", id="b", name="g") + delta(3, "tool_use", " ")
    last = again + signature + stop(0) + stop(1) + stop(2) + stop(3) + ending("tool_use")
    events = good(run(Api.MESSAGES, BEGIN + thinking + text + b"".join(tools) + last, places)[0])
    assert blocks(events) == [("thinking", "hm"), ("text", "Hi"), ("tool_use", '{"x":1}'), ("tool_use", "{} ")]
    begun = [data["content_block"] for name, data in events if name == "content_block_start"]
    assert begun[2] == {"type": "tool_use", "id": "a", "name": "f", "input": {}}


@given(cuts)
def test_messages_repair_splits_tool_and_text_of_one_index(places: list[int]) -> None:
    tool = start(0, "tool_use", id="a", name="f") + delta(0, "tool_use", "{}")
    text = start(0, "text", text="") + delta(0, "text", "Hi")
    events = good(run(Api.MESSAGES, BEGIN + tool + text + stop(0) + stop(1) + ending(), places)[0])
    assert blocks(events) == [("tool_use", "{}"), ("text", "Hi")]


def test_messages_repair_follows_a_tools_changed_index() -> None:
    tool = start(0, "tool_use", id="a", name="f") + delta(0, "tool_use", '{"x"') + delta(1, "tool_use", ":1}")
    assert blocks(good(run(Api.MESSAGES, BEGIN + tool + ending())[0])) == [("tool_use", '{"x":1}')]


def test_messages_repair_refuses_input_for_a_closed_tool() -> None:
    tool = start(0, "tool_use", id="a", name="f") + start(1, "tool_use", id="b", name="g")
    out, repair = run(Api.MESSAGES, BEGIN + tool + delta(0, "tool_use", "{}") + ending())
    check_messages(read(out))
    assert repair.failed


@pytest.mark.parametrize(
    "error",
    [
        typed("error").replace(b'{"type":"error"}', b'{"code":500,"message":"boo","type":"server_error"}'),
        event({"type": "error", "error": {"type": "api_error", "message": "boo"}}, "error"),
        event({"error": {"code": 500, "message": "boo", "type": "server_error"}}),
    ],
)
@given(places=cuts)
def test_messages_repair_gives_errors_anthropics_shape(error: bytes, places: list[int]) -> None:
    out, repair = run(Api.MESSAGES, BEGIN + start(0, "text", text="") + error, places)
    events = read(out)
    check_messages(events)
    assert events[-1][1]["error"]["message"] == "boo"
    assert events[-1][1]["error"]["type"] == "api_error"
    assert repair.failed


def test_messages_repair_ends_a_lost_or_truncated_upstream() -> None:
    repair = repairer(Api.MESSAGES)
    out = repair.feed(PLAIN[: len(PLAIN) // 2])
    out += repair.fail("engine_died", "The engine died.", status=503)
    events = read(out)
    check_messages(events)
    assert events[-1][1]["error"] == {"type": "overloaded_error", "message": "The engine died.", "code": "engine_died"}
    tool = BEGIN + start(0, "tool_use", id="a", name="f")
    assert good(run(Api.MESSAGES, tool)[0])[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert read(repairer(Api.MESSAGES).finish())[0][1]["error"]["code"] == "upstream_empty"


idents = st.sampled_from(["a", "b"])
anything = st.one_of(
    garbage,
    st.sampled_from([BEGIN, PING, ending(), ending()[:-20], typed("message_stop"), typed("message_start")]),
    st.builds(start, st.integers(0, 2), st.sampled_from(["text", "thinking", "tool_use", "new"]), id=idents),
    st.builds(delta, st.integers(0, 2), st.sampled_from(["text", "thinking", "tool_use"]), st.text(max_size=3)),
    st.builds(stop, st.integers(0, 2)),
    st.sampled_from([typed("content_block_delta", index=0, delta={"type": "new_delta", "x": 1}), typed("unheard_of")]),
)


@given(st.lists(anything, max_size=12), cuts)
def test_messages_repair_orders_any_events_for_any_cut(parts: list[bytes], places: list[int]) -> None:
    stream = b"".join(parts)
    whole, repair = run(Api.MESSAGES, stream)
    split, other = run(Api.MESSAGES, stream, places)
    assert whole == split
    assert (repair.complete, repair.failed, repair.started) == (True, other.failed, other.started)
    check_messages(read(whole))


def test_messages_repair_gives_a_message_the_id_of_one() -> None:
    repair = stream_repair(Api.MESSAGES, model="m", ident="q", created=0, request={})
    assert good(repair.feed(BEGIN + ending()))[0][1]["message"]["id"] == "msg_q"


def test_repair_message_fills_in_missing_fields() -> None:
    engines = repair_response(Api.MESSAGES, {"id": "chatcmpl-7"}, model="m", ident="q", created=0, request={})
    assert engines["id"] == "msg_q"
    body = {"id": "x", "content": [{"type": "tool_use", "id": "a", "name": "f"}], "usage": {"input_tokens": 4}}
    full = repair_response(Api.MESSAGES, body, model="m", ident="q", created=0, request={})
    assert full["id"] == "x"
    assert full["content"][0]["input"] == {}
    assert (full["usage"]["input_tokens"], full["usage"]["output_tokens"]) == (4, 0)
