"""Errors of the engine that the request caused: 400, the field's name, and no C++ exception."""

from __future__ import annotations

import json

import pytest

from meshllm.core.routing.routes import TargetKind
from meshllm.web.gateway.upstream_errors import UpstreamError
from meshllm.wire.api.errors import translate_error, translate_event
from meshllm.wire.api.routes import Api

TEMPLATE = "\nWhile executing CallExpression at line 3 in source:\n...\nError: Jinja Exception: roles must alternate"


@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES, Api.MESSAGES])
@pytest.mark.parametrize(
    ("status", "message", "param"),
    [
        (500, "Failed to parse messages: Missing 'role' in message: {}", "messages"),
        (500, "Failed to parse tools: [json.exception.out_of_range.403] key 'name' not found; tools = []", "tools"),
        (500, "got exception: Unexpected empty grammar stack after accepting piece: a (6)", "grammar"),
        (500, "audio input is not supported - hint: if this is unexpected, you may need the mmproj", "messages"),
        (500, "Invalid base64 value", "messages"),
        (500, "Unknown reasoning format: x", "reasoning_format"),
        (400, "Failed to initialize samplers: std::exception", "grammar"),
        (400, "Field 'max_tokens': [json.exception.type_error.302] type must be number, but is string", "max_tokens"),
        (400, "'messages' is required", "messages"),
        (500, "'messages' is required", "messages"),
        (500, "[json.exception.type_error.302] type must be string, but is null", None),
        (500, TEMPLATE, "messages"),
    ],
)
def test_a_fault_of_the_caller_is_a_400(api: Api, status: int, message: str, param: str | None) -> None:
    upstream = json.dumps({"error": {"code": status, "message": message, "type": "server_error"}}).encode()
    translated, body = translate_error(api, status, upstream)
    assert (translated, body["error"]["type"]) == (400, "invalid_request_error")
    assert "exception" not in body["error"]["message"]
    if not api.anthropic:
        assert body["error"]["param"] == param


@pytest.mark.parametrize(
    ("field", "most", "said"),
    [
        ("n", 4, "'n' is 9; the model is served with 4 slots: at most 4. Send several requests."),
        ("n", 1, "'n' is 9; the model is served with 1 slot: at most 1. Send several requests."),
        ("top_k", 5, "'top_k' is 9; it must be from 1 to 5."),
    ],
)
def test_a_number_beyond_what_the_engine_takes_is_named_with_its_bounds(field: str, most: int, said: str) -> None:
    message = f"Field '{field}': Value must be between 1 <= value <= {most}, but got 9"
    upstream = json.dumps({"error": {"code": 400, "message": message}}).encode()
    _, body = translate_error(Api.CHAT, 400, upstream)
    assert (body["error"]["message"], body["error"]["param"]) == (said, field)


def test_a_fault_of_the_server_stays_one() -> None:
    upstream = json.dumps({"error": {"code": 500, "message": "Compute error.", "type": "server_error"}}).encode()
    status, body = translate_error(Api.CHAT, 500, upstream)
    assert (status, body["error"]["type"]) == (500, "server_error")


UNREADABLE = "The model produced output that does not match the expected peg-native format"


@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES, Api.MESSAGES])
def test_a_call_that_cannot_be_read_is_typed_and_may_be_sent_again(api: Api) -> None:
    found = {"code": 500, "message": UNREADABLE, "type": "server_error"}
    status, body = translate_error(api, 500, json.dumps({"error": found}).encode())
    error = body["error"]
    assert (status, error["code"]) == (502, "invalid_model_output")
    assert error["type"] == ("api_error" if api.anthropic else "server_error")
    assert "peg-native" not in error["message"]
    event = translate_event(api, found)
    assert b"invalid_model_output" in event
    assert b"peg-native" not in event


@pytest.mark.parametrize("kind", TargetKind)
def test_a_call_that_cannot_be_read_is_not_tried_at_other_hosts(kind: TargetKind) -> None:
    """Each sample costs as much as the first; the caller decides."""
    status, body = translate_error(Api.CHAT, 500, json.dumps({"error": {"message": UNREADABLE}}).encode())
    assert not UpstreamError(status, body).retryable(kind)


def test_an_error_in_a_stream_is_translated_alike() -> None:
    found = {"code": 500, "message": "Failed to parse messages: Missing 'role'", "type": "server_error"}
    event = translate_event(Api.CHAT, found)
    assert b'"type":"invalid_request_error"' in event
    assert b'"param":"messages"' in event
