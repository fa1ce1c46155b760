"""GET /api/requests: the last requests of the API with their attempts; redacted for other machines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from web_rig import TOKEN, Caller, Response, owned

from meshllm.core.snapshot import Snapshot
from meshllm.web.console.redaction import WITHHELD
from meshllm.web.console.request_status import RequestsAnswer
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus, StatusInputs, node_status
from meshllm.web.gateway.request_log import AttemptTrace, Outcome, RequestLog, RequestTrace
from meshllm.web.http.access_control import AccessPolicy

KEY = "k3y"


def status() -> NodeStatus:
    """An empty status."""
    inputs = StatusInputs(snapshot=Snapshot(), name="", version="", pid=1, api="", console="", started=0.0)
    return node_status(inputs, 1.0)


def failed_over() -> RequestTrace:
    """A request that arrived at 100 s: its first target failed, a peer answered."""
    trace = RequestTrace("req_1", "openai", "/v1/chat/completions", "remote 192.0.2.7", 100.0)
    trace.model, trace.stream, trace.status, trace.outcome = "m", True, 200, Outcome.ANSWERED
    trace.queue_seconds, trace.first_byte, trace.ended = 0.25, 101.5, 103.0
    trace.prompt_tokens, trace.cached_tokens, trace.completion_tokens = 900, 800, 40
    first = AttemptTrace("backend http://10.0.0.3:8000", "", 100.25)
    first.connected, first.ended, first.outcome = 100.5, 100.75, Outcome.FAILED
    first.error = "http://10.0.0.3:8000 closed the connection"
    second = AttemptTrace("peer 0123456789", "0123456789", 100.75)
    second.connected, second.first_byte, second.ended, second.outcome = 100.8, 101.5, 103.0, Outcome.ANSWERED
    trace.attempts = [first, second]
    return trace


class Server:
    """A console that shows a request log."""

    def __init__(self) -> None:
        self.log = RequestLog(lambda: 200.0, lambda: 1_000_200.0)
        policy = AccessPolicy(KEY, allowed_hosts=frozenset({"box.lan"}))
        self.console = Console(policy, status, requests=self.log.snapshot, token=TOKEN)

    async def get(self, host: str = "localhost", **headers: str) -> Response:
        """GET /api/requests, as the owner on this machine."""
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        caller.send(owned("GET", "/api/requests", headers=headers, host=host))
        try:
            return await caller.response()
        finally:
            await caller.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A console that listens."""
    made = Server()
    made.port = await made.console.start(("127.0.0.1",), 0)
    yield made
    await made.console.close()


async def test_requests_show_each_attempt_with_its_times(server: Server) -> None:
    response = await server.get()
    assert (response.status, response.json) == (200, {"requests": []})
    server.log.add(failed_over())
    (told,) = (await server.get()).json["requests"]
    attempts = told.pop("attempts")
    assert told == {
        "id": "req_1",
        "api": "openai",
        "path": "/v1/chat/completions",
        "model": "m",
        "caller": "remote 192.0.2.7",
        "target": "peer 0123456789",
        "node": "0123456789",
        "status": 200,
        "outcome": "answered",
        "error": "",
        "stream": True,
        "started_at": 1_000_100.0,
        "queue_seconds": 0.25,
        "first_byte_seconds": 1.5,
        "duration_seconds": 3.0,
        "prompt_tokens": 900,
        "cached_tokens": 800,
        "completion_tokens": 40,
    }
    assert attempts == [
        {
            "number": 1,
            "target": "backend http://10.0.0.3:8000",
            "node": "",
            "started_seconds": 0.25,
            "connect_seconds": 0.25,
            "first_byte_seconds": None,
            "duration_seconds": 0.5,
            "outcome": "failed",
            "error": "http://10.0.0.3:8000 closed the connection",
        },
        {
            "number": 2,
            "target": "peer 0123456789",
            "node": "0123456789",
            "started_seconds": 0.75,
            "connect_seconds": 0.05,
            "first_byte_seconds": 0.75,
            "duration_seconds": 2.25,
            "outcome": "answered",
            "error": "",
        },
    ]


async def test_requests_are_listed_newest_first(server: Server) -> None:
    for number in range(3):
        server.log.add(RequestTrace(f"req_{number}", "openai", "/v1/models", "local", 100.0 + number))
    response = await server.get()
    assert [one["id"] for one in response.json["requests"]] == ["req_2", "req_1", "req_0"]
    assert [one["status"] for one in response.json["requests"]] == [None, None, None]


async def test_requests_are_redacted_for_another_machine(server: Server) -> None:
    server.log.add(failed_over())
    assert (await server.get("box.lan")).status == 401
    response = await server.get("box.lan", Authorization=f"Bearer {KEY}")
    (told,) = RequestsAnswer.model_validate_json(response.body).requests
    assert (told.id, told.caller, told.model, told.completion_tokens) == ("req_1", "remote", "m", 40)
    assert [attempt.target for attempt in told.attempts] == ["backend", "peer 0123456789"]
    assert [attempt.error for attempt in told.attempts] == [WITHHELD, ""]
    assert [attempt.duration_seconds for attempt in told.attempts] == [0.5, 2.25]
    for secret in (b"192.0.2.7", b"10.0.0.3"):
        assert secret not in response.body
