"""Valid OpenAI requests that the engine refuses are rewritten; all others are unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api.request_repair import repair_request
from meshllm.wire.api.routes import Api

SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
TEXT = {"type": "reasoning_text", "text": "hm"}


@pytest.mark.parametrize(
    ("given_items", "wanted"),
    [
        ([SAID], [{**SAID, "type": "message"}]),
        ([{"role": "user", "content": "a"}, SAID], [{"role": "user", "content": "a"}, {**SAID, "type": "message"}]),
        ([{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}, {"a": 1}], [{"a": 1}]),
        (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}],
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": [TEXT]}],
        ),
    ],
)
def test_request_repair_rewrites_what_the_engine_refuses(given_items: list[Any], wanted: list[Any]) -> None:
    body = {"model": "m", "input": given_items}
    assert repair_request(Api.RESPONSES, body) == {"model": "m", "input": wanted}
    assert repair_request(Api.RESPONSES, {"input": wanted}) is None


values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["type", "role", "content", "summary", "text", "input"]), inner, max_size=4),
    ),
)


@given(st.sampled_from(Api), st.dictionaries(st.sampled_from(["input", "messages"]), values))
def test_request_repair_accepts_any_body(api: Api, body: dict[str, Any]) -> None:
    repaired = repair_request(api, body)
    assert repaired is None or (api is Api.RESPONSES and repair_request(api, repaired) is None)


@pytest.mark.parametrize("body", [{}, {"input": "text"}, {"input": [{"type": "message", "role": "assistant"}, 7]}])
def test_request_repair_leaves_valid_requests_unchanged(body: dict[str, Any]) -> None:
    assert repair_request(Api.RESPONSES, body) is None
    assert repair_request(Api.CHAT, {"input": [SAID]}) is None
