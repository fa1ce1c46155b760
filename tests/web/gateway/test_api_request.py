"""Prepared requests, and their responses: whatever an engine sends, the caller gets an answer or a typed error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.routing.routes import Target, TargetKind
from meshllm.core.serving.template_traits import TemplateTraits
from meshllm.web.gateway.api_request import ApiRequest
from meshllm.web.http.client import UpstreamPool
from meshllm.wire.api.conversation import ANY_TEMPLATE
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api

ASKED: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
FORCED = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
# One for each translator.
REQUESTS: dict[str, tuple[Api, dict[str, Any]]] = {
    "logprobs of completions": (Api.COMPLETIONS, {"model": "m", "prompt": "a", "logprobs": 2}),
    "echo": (Api.COMPLETIONS, {"model": "m", "prompt": "a", "echo": True}),
    "several choices": (Api.COMPLETIONS, {"model": "m", "prompt": "a", "n": 2}),
    "logprobs of chat": (Api.CHAT, {**ASKED, "logprobs": True}),
    "a call in chat": (Api.CHAT, {**ASKED, **FORCED}),
    "a schema in messages": (
        Api.MESSAGES,
        {**ASKED, "output_format": {"type": "json_schema", "schema": SCHEMA}},
    ),
    "a prefill": (Api.MESSAGES, {**ASKED, "messages": [*ASKED["messages"], {"role": "assistant", "content": "b"}]}),
    "a call in responses": (
        Api.RESPONSES,
        {"model": "m", "input": "a", "tools": [{"type": "function", "name": "f"}], "tool_choice": "required"},
    ),
    "a custom tool": (Api.RESPONSES, {"model": "m", "input": "a", "tools": [{"type": "custom", "name": "f"}]}),
    "dimensions": (Api.EMBEDDINGS, {"model": "m", "input": "a", "dimensions": 2}),
}
KEYS = (
    *("choices", "index", "delta", "message", "text", "logprobs", "content", "token", "logprob", "top_logprobs"),
    *("tool_calls", "function", "name", "arguments", "usage", "finish_reason", "data", "embedding", "output", "type"),
    *("response", "item", "id", "content_block", "stop_reason", "role"),
)
WORDS = (
    *("message", "output_text", "function_call", "response.created", "response.output_text.delta"),
    *("response.completed", "content_block_delta", "content_block_start", "message_start", "message_delta", "stop"),
    *("assistant", "", "f"),
)
LEAVES = st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-2, 2) | st.sampled_from(WORDS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5)
CHOICES = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), max_size=2).map(
    lambda it: {"choices": it}
)


def prepared(name: str) -> ApiRequest:
    api, body = REQUESTS[name]
    request = ApiRequest(api, "/v1/x", body, json.dumps(body).encode(), {})
    assert request.prepare() is None
    return request


@pytest.mark.parametrize("name", REQUESTS)
@given(responses=st.lists(OBJECTS | CHOICES, max_size=3))
def test_any_response_of_an_engine_is_translated_or_an_error(name: str, responses: list[dict[str, Any]]) -> None:
    for response in responses:
        body = json.dumps(response).encode()
        found = prepared(name).whole_response(body, TargetKind.ENGINE, is_json=True, wall=lambda: 1)
        assert found is None or isinstance(found, bytes | Refusal)
    stream = b"".join(b"data: %b\n\n" % json.dumps(response).encode() for response in responses)
    found = prepared(name).whole_response(stream, TargetKind.ENGINE, is_json=False, wall=lambda: 1)
    assert found is None or isinstance(found, bytes | Refusal)
    if not prepared(name).api.can_stream:
        return
    repair = prepared(name).stream_repair(1, TargetKind.ENGINE, split=False)
    assert isinstance(repair.feed(stream) + repair.finish(), bytes)
    assert repair.complete


def test_request_is_prepared_for_the_template_of_the_engine_that_gets_it() -> None:
    """While it waits, the engine may be replaced by one with another chat template."""
    messages = [{"role": "system", "content": "rule"}, {"role": "user", "content": "a"}]
    body = {"model": "m", "messages": messages}
    request = ApiRequest(Api.CHAT, "/v1/chat/completions", body, json.dumps(body).encode(), {})
    loop = asyncio.new_event_loop()
    loop.close()
    pool = UpstreamPool(Target(TargetKind.ENGINE, "/engine.sock"), loop)

    def sent(traits: TemplateTraits) -> list[str]:
        assert request.refusal(traits) is None
        assert request.prepare(traits) is None
        found = json.loads(request.wire(pool, None).partition(b"\r\n\r\n")[2])
        return [message["role"] for message in found["messages"]]

    for _ in range(2):
        assert sent(ANY_TEMPLATE) == ["system", "user"]
        assert sent(TemplateTraits(system=False, systems_first=False, later_system=False)) == ["user"]
