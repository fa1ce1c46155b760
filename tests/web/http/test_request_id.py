"""Request ids: taken over or made, and returned on every response."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from web_rig import Bench, ask, bench, request

from meshllm.web.http.access_control import AccessPolicy
from meshllm.web.http.request_id import request_id_of

MADE = re.compile(r"req_[0-9a-f]{24}")


@pytest.mark.parametrize("sent", [b"a", b"trace-1.2:3_x", b"x" * 128])
def test_request_id_is_taken_over_if_well_formed(sent: bytes) -> None:
    assert request_id_of({b"x-request-id": sent}) == sent.decode()


@pytest.mark.parametrize("sent", [b"", b"a b", b'a"b', b"x" * 129, "é".encode(), b"a\n", b"a,b", b"a/b"])
def test_request_id_is_made_if_missing_or_malformed(sent: bytes) -> None:
    assert MADE.fullmatch(request_id_of({b"x-request-id": sent}))
    assert MADE.fullmatch(request_id_of({}))
    assert request_id_of({}) != request_id_of({})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/nothing", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/metrics", 200),
        ("OPTIONS", "/v1/models", 204),
        ("POST", "/v1/chat/completions", 400),
        ("GET", "/v1/models/unknown", 404),
    ],
)
async def test_every_response_has_the_request_id(table: Bench, method: str, path: str, status: int) -> None:
    response = await table.call(request(method, path, headers={"X-Request-Id": "id-1"}), method)
    assert (response.status, response.headers["x-request-id"]) == (status, "id-1")
    if status >= 400:
        assert response.json["error"]["request_id"] == "id-1"
    assert MADE.fullmatch((await table.call(request(method, path), method)).headers["x-request-id"])


async def test_rejections_before_routing_have_the_request_id(table: Bench) -> None:
    """Bytes that never become a request: the headers that came count."""
    caller = await table.caller()
    caller.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: id-2\r\nContent-Encoding: zstd\r\n\r\n")
    response = await caller.response("GET")
    assert (response.status, response.headers["x-request-id"]) == (415, "id-2")
    assert response.json["error"]["request_id"] == "id-2"
    caller = await table.caller()
    caller.send(b"nonsense\r\n\r\n")
    assert MADE.fullmatch((await caller.response("GET")).headers["x-request-id"])


async def test_refused_callers_get_the_request_id(folder: Path) -> None:
    async with bench(folder, AccessPolicy("key")) as made:
        headers = {"X-Request-Id": "id-3", "X-Forwarded-For": "192.0.2.1"}
        response = await made.call(request("POST", "/v1/messages", {}, headers))
    assert (response.status, response.headers["x-request-id"]) == (401, "id-3")
    assert response.json["request_id"] == "id-3"


@pytest.mark.parametrize("stream", [False, True])
async def test_request_id_is_forwarded_to_the_target(table: Bench, stream: bool) -> None:
    engine = await table.serve()
    response = await table.call(ask(stream=stream, headers={"X-Request-Id": "id-4"}))
    assert (response.status, response.headers["x-request-id"]) == (200, "id-4")
    assert b"\r\nx-request-id: id-4\r\n" in engine.calls[0].head
    response = await table.call(ask(stream=stream))
    assert f"\r\nx-request-id: {response.headers['x-request-id']}\r\n".encode() in engine.calls[1].head
