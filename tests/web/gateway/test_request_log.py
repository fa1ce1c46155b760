"""The access line, the attempt lines and the ring of the last requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from web_rig import CHAT_STREAM, DONE, Bench, Call, Town, ask, bench, host, never, node_id, request, served, town

from meshllm.core.snapshot import ServerPhase
from meshllm.web.gateway.request_log import (
    LINES_AT_ONCE,
    MAX_REQUESTS,
    MAX_TEXT,
    UNROUTED_LINES_AT_ONCE,
    LineKind,
    LineLimiter,
    Outcome,
    RequestLog,
    RequestTrace,
)
from meshllm.web.http.access_control import AccessPolicy

USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":7,'
    b'"prompt_tokens_details":{"cached_tokens":5}}}\n\n'
)
ACCESS_FIELDS = {
    "request_id", "api", "path", "model", "caller", "target", "node", "attempts", "queue_ms", "first_byte_ms",
    "duration_ms", "status", "outcome", "error", "prompt_tokens", "cached_tokens", "completion_tokens", "stream",
}  # fmt: skip
ATTEMPT_FIELDS = {
    "request_id", "attempt", "target", "node", "outcome", "error", "connect_ms", "first_byte_ms", "duration_ms",
}  # fmt: skip


class Lines(logging.Handler):
    """The fields of the access and attempt lines."""

    def __init__(self) -> None:
        super().__init__()
        self.access: list[dict[str, Any]] = []
        self.attempts: list[tuple[int, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.fields  # type: ignore[attr-defined]
        if record.name == "meshllm.access":
            self.access.append(fields)
        else:
            self.attempts.append((record.levelno, fields))


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged from now on."""
    handler = Lines()
    loggers = [logging.getLogger("meshllm.access"), logging.getLogger("meshllm.gateway")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Town]:
    """Three gateways; the first one is asked."""
    async with town(folder) as made:
        yield made


async def reset(call: Call) -> None:
    """Breaks the connection instead of a response."""
    call.reset()


@pytest.mark.parametrize("stream", [False, True])
async def test_access_line_of_an_answered_request(table: Bench, lines: Lines, stream: bool) -> None:
    async def script(call: Call) -> None:
        if stream:
            call.stream(*CHAT_STREAM[:-1], USAGE, DONE)
            call.hang_up()
        else:
            usage = {"prompt_tokens": 20, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 5}}
            call.answer({"object": "chat.completion", "choices": [], "usage": usage})

    await table.serve(script)
    await table.call(ask(stream=stream, headers={"X-Request-Id": "id-1"}))
    [line] = lines.access
    assert set(line) == ACCESS_FIELDS
    assert line["queue_ms"] == 0.0
    assert 0 <= line["first_byte_ms"] <= line["duration_ms"]
    expected = {
        "request_id": "id-1", "api": "chat", "path": "/v1/chat/completions", "model": "m", "caller": "local",
        "target": "engine", "attempts": 1, "status": 200, "outcome": "answered", "error": "", "stream": stream,
        "prompt_tokens": 20, "cached_tokens": 5, "completion_tokens": 7,
    }  # fmt: skip
    assert {name: line[name] for name in expected} == expected
    [(level, attempt)] = lines.attempts
    assert level == logging.DEBUG
    assert set(attempt) == ATTEMPT_FIELDS
    assert (attempt["request_id"], attempt["attempt"], attempt["outcome"]) == ("id-1", 1, "answered")
    [summary] = table.gateway.requests.snapshot()
    assert (summary.request_id, summary.outcome, summary.prompt_tokens, summary.stream) == (
        "id-1", Outcome.ANSWERED, 20, stream,
    )  # fmt: skip
    assert [each.number for each in summary.attempts] == [1]


async def test_access_line_is_written_once_for_each_request(table: Bench, lines: Lines) -> None:
    await table.get("/v1/models")
    await table.get("/nothing")
    await table.call(ask(model="unknown"))
    await table.call(request("POST", "/v1/chat/completions", {"model": 1}))
    caller = await table.caller()
    caller.send(b"nonsense\r\n\r\n")
    await caller.response("GET")
    assert [(line["status"], line["outcome"]) for line in lines.access] == [
        (200, "answered"), (404, "refused"), (404, "refused"), (400, "refused"), (400, "refused"),
    ]  # fmt: skip
    assert all(line["error"] for line in lines.access[1:])
    # A list of models is no news for the request view.
    assert [each.status for each in table.gateway.requests.snapshot()] == [400, 400, 404, 404]


async def test_failed_attempts_name_target_and_reason(place: Town, lines: Lines) -> None:
    """The first peer breaks the connection, the second one answers; both nodes log the same id."""
    here, one, two = place.benches
    await place.serve(1, reset)
    await place.serve(2)
    here.meet(host(node_id(1), "m"), host(node_id(2), "m", rtt=5.0))
    response = await here.call(ask(headers={"X-Request-Id": "id-2"}))
    assert response.status == 200
    [summary] = here.gateway.requests.snapshot()
    assert [(each.target, each.outcome) for each in summary.attempts] == [
        (f"peer {node_id(1).hex()[:10]}", Outcome.REFUSED), (f"peer {node_id(2).hex()[:10]}", Outcome.ANSWERED),
    ]  # fmt: skip
    assert "connection" in summary.attempts[0].error
    assert summary.attempts[0].node == node_id(1).hex()[:10]
    [there] = one.gateway.requests.snapshot()
    assert (there.request_id, there.caller, there.outcome) == (
        "id-2", f"peer {node_id(0).hex()[:10]}", Outcome.FAILED,
    )  # fmt: skip
    assert [each.outcome for each in there.attempts] == [Outcome.FAILED]
    assert all("connection" in each.error for each in there.attempts)
    [also] = two.gateway.requests.snapshot()
    assert (also.request_id, also.outcome) == ("id-2", Outcome.ANSWERED)
    failed = [fields for level, fields in lines.attempts if level == logging.INFO]
    assert {fields["request_id"] for fields in failed} == {"id-2"}
    assert len(failed) == 2
    assert {line["request_id"] for line in lines.access} == {"id-2"}
    assert len(lines.access) == 3


async def test_caller_that_goes_away_is_abandoned(table: Bench, lines: Lines) -> None:
    engine = await table.serve(never)
    caller = await table.caller()
    caller.send(ask(stream=True))
    await engine.watch.until(lambda: len(engine.calls) == 1)
    await caller.close()
    await table.gateway.watch.until(lambda: table.gateway.outcomes == ["abandoned"])
    await asyncio.sleep(0)  # the line is written in the loop's next turn
    assert (lines.access[0]["outcome"], lines.access[0]["status"]) == ("abandoned", 499)


async def test_error_text_of_the_model_is_not_logged(table: Bench, lines: Lines) -> None:
    """A stream that fails in the middle: the log has the error's message, not the text before it."""

    async def script(call: Call) -> None:
        call.begin_stream()
        call.chunk(CHAT_STREAM[1] + b'data: {"error":{"message":"out of memory","code":500}}\n\n')
        call.end_stream()
        call.hang_up()

    await table.serve(script)
    await table.call(ask(stream=True))
    [line] = lines.access
    assert (line["outcome"], line["error"]) == ("failed", "out of memory")


def test_request_log_is_bounded() -> None:
    log = RequestLog(lambda: 100.0, lambda: 1_000_100.0)
    for number in range(MAX_REQUESTS + 50):
        trace = RequestTrace(f"id-{number}", "chat", "/v1/chat/completions", "local", 90.0)
        trace.model, trace.ended, trace.error = "m" * 1000, 95.0, "x" * 1000
        log.add(trace)
    found = log.snapshot()
    assert [each.request_id for each in found] == [f"id-{n}" for n in range(MAX_REQUESTS + 49, 49, -1)]
    assert found[0].started_at == 1_000_090.0
    assert found[0].duration_seconds == 5.0
    assert len(found[0].model) == len(found[0].error) == MAX_TEXT


def test_access_lines_are_bounded_and_those_left_out_are_counted(lines: Lines) -> None:
    now = 0.0
    limiter = LineLimiter(lambda: now)
    allowed = [limiter.allows() for _ in range(1000)]
    assert sum(allowed) == LINES_AT_ONCE
    assert limiter.allows(LineKind.FAILED), "failures have an allowance of their own"
    now = 1.0
    assert limiter.allows()
    assert [fields["left_out"] for fields in lines.access] == [1000 - LINES_AT_ONCE]


async def test_refused_requests_neither_fill_the_ring_nor_displace_access_lines(folder: Path, lines: Lines) -> None:
    async with bench(folder, AccessPolicy(key="secret")) as table:
        await table.serve()
        for _ in range(int(LINES_AT_ONCE) + 20):
            assert (await table.call(request("GET", "/v1/models", host="box.lan"), "GET")).status == 401
        assert (await table.call(ask())).status == 200
        [summary] = table.gateway.requests.snapshot()
        assert (summary.status, summary.outcome) == (200, Outcome.ANSWERED)
    statuses = [line["status"] for line in lines.access if "status" in line]
    assert UNROUTED_LINES_AT_ONCE <= statuses.count(401) < LINES_AT_ONCE
    assert statuses.count(200) == 1


async def test_requests_without_a_route_have_the_api_other(table: Bench, lines: Lines) -> None:
    await table.get("/nothing")
    await table.get("/v1/models/unknown")
    caller = await table.caller()
    caller.send(b"nonsense\r\n\r\n")
    await caller.response("GET")
    await asyncio.sleep(0)
    assert [(line["api"], line["caller"]) for line in lines.access] == [
        ("other", "local"), ("models", "local"), ("other", "local"),
    ]  # fmt: skip
    text = (await table.get("/metrics")).body.decode()
    assert 'mesh_llm_requests_total{api="other",model="unknown",outcome="refused"} 2.0' in text
    assert 'api="chat"' not in text


@pytest.mark.parametrize("ending", ["engine killed", "host stops"])
async def test_stream_lost_at_a_peer_is_lost_at_both_nodes(place: Town, lines: Lines, ending: str) -> None:
    """Both access lines say `lost`, and name the cause, which the core of the host reports after the connection."""
    here, there = place.benches[:2]
    cause = "the engine process was killed by SIGKILL"
    heard = asyncio.Event()

    async def script(call: Call) -> None:
        call.begin_stream()
        call.chunk(CHAT_STREAM[0] + CHAT_STREAM[1])
        await heard.wait()
        if ending == "engine killed":
            call.reset()
            asyncio.get_running_loop().call_later(0.01, there.publish, gone)
        else:
            await call.gone()

    engine = await place.serve(1, script)
    gone = replace(
        served("m", engine.address), server=ServerPhase.NONE, server_facts=None, last_failure=cause, reason=cause
    )
    here.meet(host(node_id(1), "m"))
    caller = await here.caller()
    caller.send(ask(stream=True))
    await caller.head()
    body = await caller.piece()
    heard.set()
    if ending == "host stops":
        await there.gateway.close(grace=0.01)
    while piece := await caller.piece():
        body += piece
    await asyncio.sleep(0)  # the line is written in the loop's next turn
    expected = cause if ending == "engine killed" else "This node is stopping."
    assert expected.encode() in body
    assert [(line["outcome"], line["status"]) for line in lines.access] == [("lost", 200)] * 2
    assert all(expected in line["error"] for line in lines.access)


@pytest.mark.usefixtures("quick")
async def test_stream_of_a_lost_engine_ends_without_a_cause_in_time(
    table: Bench, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.web.gateway.request.CAUSE_SECONDS", 0.02)
    heard = asyncio.Event()

    async def script(call: Call) -> None:
        call.begin_stream()
        call.chunk(CHAT_STREAM[0] + CHAT_STREAM[1])
        await heard.wait()
        call.reset()

    await table.serve(script)
    caller = await table.caller()
    caller.send(ask(stream=True))
    await caller.head()
    body = await caller.piece()
    heard.set()
    while piece := await caller.piece():
        body += piece
    assert b"upstream_lost" in body
    await asyncio.sleep(0)
    assert [line["outcome"] for line in lines.access] == ["lost"]
    await caller.close()
    await table.idle()
