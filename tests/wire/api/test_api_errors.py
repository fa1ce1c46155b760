"""Error bodies have the caller's API shape and are bounded, for any upstream answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_helpers import read

from meshllm.core.snapshot import Purpose
from meshllm.wire.api.errors import error_body, error_event, translate_error, translate_event
from meshllm.wire.api.routes import ROUTES, Api, find_route, model_in_path
from meshllm.wire.api.stream_repair import stream_repair

CONTEXT = {
    "error": {
        "code": 400,
        "message": "request exceeds the available context size",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 5000,
        "n_ctx": 4096,
    }
}
LONGER = (
    "This model's maximum context length is 4096 tokens. However, your request has 5000 tokens. Shorten it. The owner "
    "of the node that serves the model can raise the limit with --ctx-size, up to the context that the model was made "
    "for."
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
fields = st.dictionaries(
    st.sampled_from(["error", "message", "type", "code", "detail", "object", "param", "x"]), json_values
)
bodies = st.one_of(
    st.binary(max_size=200),
    fields.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda value: json.dumps({"error": value}).encode(), fields),
)


def is_error(api: Api, body: dict[str, Any]) -> None:
    error = body["error"]
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    if api.anthropic:
        assert body["type"] == "error"
    else:
        assert {"message", "type", "param", "code"} <= set(error)
        assert error["code"] is None or isinstance(error["code"], str)
    assert len(json.dumps(body)) < 100_000


@given(st.sampled_from(Api), st.integers(0, 999), bodies)
def test_translate_error_accepts_any_upstream_answer(api: Api, status: int, upstream: bytes) -> None:
    told, body = translate_error(api, status, upstream)
    assert told == (status if 400 <= status <= 599 else 502)
    is_error(api, body)


@pytest.mark.parametrize("api", [Api.EMBEDDINGS, Api.RERANK])
def test_translate_error_turns_an_oversized_input_into_400(api: Api) -> None:
    words = "input (600 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
    engine = json.dumps({"error": {"code": 500, "message": words, "type": "server_error"}}).encode()
    status, body = translate_error(api, 500, engine)
    error = body["error"]
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert error["message"].startswith("This model's maximum context length is 512 tokens.")
    assert "600 tokens" in error["message"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (600, 512)


@pytest.mark.parametrize("api", [Api.CHAT, Api.MESSAGES])
def test_translate_error_turns_a_wrong_purpose_into_400(api: Api) -> None:
    words = "the current context does not support logits computation. skipping"
    engine = json.dumps({"error": {"code": 500, "message": words, "type": "server_error"}}).encode()
    status, body = translate_error(api, 500, engine)
    assert (status, body["error"]["code"], body["error"]["type"]) == (400, "wrong_purpose", "invalid_request_error")
    is_error(api, body)


def test_api_purpose_is_defined_for_each_api() -> None:
    assert {api: api.purpose for api in Api} == {
        Api.CHAT: Purpose.GENERATE,
        Api.COMPLETIONS: Purpose.GENERATE,
        Api.RESPONSES: Purpose.GENERATE,
        Api.MESSAGES: Purpose.GENERATE,
        Api.EMBEDDINGS: Purpose.EMBED,
        Api.RERANK: Purpose.RERANK,
        Api.COUNT_TOKENS: None,
        Api.INPUT_TOKENS: None,
        Api.MODELS: None,
    }


def test_translate_error_keeps_known_fields() -> None:
    status, body = translate_error(Api.CHAT, 400, json.dumps(CONTEXT).encode())
    assert status == 400
    assert body["error"] == {
        "message": LONGER,
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
        "n_prompt_tokens": 5000,
        "n_ctx": 4096,
    }
    _, body = translate_error(Api.MESSAGES, 400, json.dumps(CONTEXT).encode(), request_id="req_1")
    assert body["request_id"] == "req_1"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].startswith("prompt is too long: 5000 tokens > 4096 maximum. Shorten it.")
    assert body["error"]["n_ctx"] == 4096


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (529, "overloaded_error"),
    ],
)
def test_anthropic_type_follows_the_status(status: int, kind: str) -> None:
    body = error_body(Api.MESSAGES, status, "word", "text")
    assert body == {"type": "error", "error": {"type": kind, "message": "text", "code": "word"}}


def test_translate_error_shortens_html() -> None:
    page = b"<html><head><title>x</title></head><body><h1>502 Bad\nGateway</h1><script>evil()</script>" + b"<p>a" * 9999
    _, body = translate_error(Api.CHAT, 502, page)
    assert body["error"]["message"].startswith("The model server answered with status 502: 502 Bad Gateway a")
    assert len(body["error"]["message"]) < 400


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES])
def test_error_event_has_the_apis_shape(api: Api) -> None:
    events = read(error_event(api, 503, "no_host", "Nobody\n\ndata: serves this.", sequence_number=4))
    name, data = events[0]
    if api is Api.RESPONSES:
        assert (name, data["type"], data["sequence_number"], data["code"]) == ("error", "error", 4, "no_host")
    else:
        is_error(api, data)
        assert name == ("error" if api.anthropic else "")
        assert len(events) == (1 if api.anthropic else 2)


@pytest.mark.parametrize("path", ["/v1//chat/completions", "/v1/chat/completions/", "//v1///chat/completions//"])
def test_more_slashes_than_needed_are_the_same_route(path: str) -> None:
    assert find_route(path) is find_route("/v1/chat/completions")


def test_find_route_is_exact_and_canonical() -> None:
    for path in ("/v1/completions", "/completions"):
        route = find_route(path)
        assert route is not None
        assert (route.api, route.method, route.path) == (Api.COMPLETIONS, "POST", "/v1/completions")
    assert {route.path for route in ROUTES.values()} <= set(ROUTES)
    for path in ("/V1/models", "/v1", "/", "/v1/models/x", "/props", "/slots"):
        assert find_route(path) is None
    assert model_in_path("/v1/models/org/name%20x") == "org/name x"
    assert model_in_path("/v1/models/") is None


@pytest.mark.parametrize("api", list(Api))
def test_error_body_carries_the_request_id(api: Api) -> None:
    """OpenAI has no field for it: it is beside `code`. Anthropic's is at the top level."""
    upstream = json.dumps({"error": {"message": "no", "request_id": "of-the-backend"}}).encode()
    for body in (
        error_body(api, 404, "model_not_found", "no", request_id="req_1"),
        translate_error(api, 500, upstream, request_id="req_1")[1],
        translate_error(api, 502, b"<html>", request_id="req_1")[1],
    ):
        assert (body if api.anthropic else body["error"])["request_id"] == "req_1"
        assert "of-the-backend" not in json.dumps(body)


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES])
@pytest.mark.parametrize("upstream", [b'data: {"error": {"message": "out of memory"}}\n\n', b"data: {\n\n", b"", None])
def test_error_event_carries_the_request_id(api: Api, upstream: bytes | None) -> None:
    repair = stream_repair(api, model="m", ident="x", created=1, request={"model": "m"}, request_id="req_1")
    stream = repair.fail("upstream_lost", "gone") if upstream is None else repair.feed(upstream) + repair.finish()
    errors = [
        data for _, data in read(stream) if isinstance(data, dict) and ("error" in data or data.get("type") == "error")
    ]
    assert errors
    error = errors[0]
    assert (error["error"] if api in (Api.CHAT, Api.COMPLETIONS) else error)["request_id"] == "req_1"


def test_relayed_error_keeps_its_null_code() -> None:
    error = {"message": "gone", "type": "server_error", "param": None, "code": None}
    for relayed in (translate_error(Api.CHAT, 500, json.dumps({"error": error}).encode())[1], relayed_event(error)):
        assert relayed["error"] == error


def relayed_event(error: dict[str, Any]) -> dict[str, Any]:
    """The error event that follows from an upstream's."""
    found = json.loads(translate_event(Api.CHAT, error).split(b"\n")[0].removeprefix(b"data: "))
    assert isinstance(found, dict)
    return found
