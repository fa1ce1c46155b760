"""What counts as the tool call that a model is asked for once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api.tool_call_test import MAX_TOKENS, REQUEST, is_call


def reply(*calls: Any, content: str = "") -> bytes:
    message = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}
    return json.dumps({"choices": [{"message": message}]}).encode()


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_call_with_its_argument_is_one() -> None:
    assert is_call(reply(call("read_file", '{"path": "notes.txt"}')))
    assert is_call(reply(call("read_file", '{"path": "./notes.txt", "more": 1}'), content="I read it."))


@pytest.mark.parametrize(
    "other",
    [
        reply(content='<tool_call>{"name": "read_file"}</tool_call>'),
        reply(call("write_file", '{"path": "notes.txt"}')),
        reply(call("read_file", "{}")),
        reply(call("read_file", '{"path": 3}')),
        reply(call("read_file", '{"path"')),
        reply(call("read_file", {"path": "notes.txt"})),
    ],
)
def test_text_and_other_calls_are_none(other: bytes) -> None:
    assert is_call(other) is False


@pytest.mark.parametrize("other", [b"", b"{}", b'{"choices": []}', b'{"choices": [3]}', b"<html>"])
def test_other_replies_say_nothing(other: bytes) -> None:
    assert is_call(other) is None


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_strange_replies_raise_nothing(value: Any) -> None:
    for body in (value, {"choices": value}, {"choices": [{"message": {"tool_calls": value}}]}):
        assert is_call(json.dumps(body).encode()) in (None, False)


def test_request_is_bounded() -> None:
    assert REQUEST["max_tokens"] == MAX_TOKENS <= 256
