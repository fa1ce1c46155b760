"""Targets that misbehave: callers get the answer all the same, or a typed error; never a hang, never half an answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from web_rig import (
    ANSWERS,
    DONE,
    STREAMING,
    STREAMS,
    Bench,
    Call,
    Response,
    Script,
    Upstream,
    ask,
    backend,
    bench,
    chat_chunk,
    never,
    request,
    served,
    well,
)

from meshllm.core.records import NodeId
from meshllm.core.snapshot import ServerPhase
from meshllm.core.split.host import SplitState
from meshllm.core.split.lease import Lease
from meshllm.core.split.planner import WorkerShare
from meshllm.web.gateway.api_request import ApiRequest
from meshllm.web.http import client as upstream_module
from meshllm.web.http.server import Connection
from meshllm.wire.api.worker_loss import worker_loss_message


def told(path: str, response: Response) -> dict[str, object]:
    """The typed error at the end of a stream."""
    events = [line for line in response.body.split(b"\n") if line.startswith(b"data: ")]
    if path in ("/v1/chat/completions", "/v1/completions"):
        assert events[-1] == b"data: [DONE]"
        found = json.loads(events[-2][6:])["error"]
        assert {"message", "type", "param", "code"} <= set(found)
    elif path == "/v1/messages":
        value = json.loads(events[-1][6:])
        assert value["type"] == "error"
        found = value["error"]
        assert {"type", "message"} <= set(found)
        assert b"event: error\n" in response.body
    else:
        found = next(json.loads(event[6:]) for event in events if b'"type":"error"' in event)
        assert {"type", "code", "message", "param", "sequence_number"} <= set(found)
    return dict(found)


async def thousand(table: Bench, number: int) -> None:
    caller = await table.caller()
    for _ in range(number):
        caller.send(ask(stream=True))
        response = await caller.response()
        assert response.status == 200
        assert response.body.endswith(DONE)
        assert response.body.count(b"data: ") == 5
    await caller.close()


async def test_engine_connections_are_not_reused_after_streams(table: Bench) -> None:
    engine = await table.serve(well)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(thousand(table, 250))
    assert table.gateway.outcomes == ["answered"] * 1000
    assert len(engine.calls) == 1000


async def test_engine_that_alternates_streams_and_responses(table: Bench) -> None:
    """What it hung up on after a stream is never used for the next request."""
    engine = await table.serve(well)
    caller = await table.caller()
    for number in range(60):
        caller.send(ask(stream=number % 3 == 0))
        assert (await caller.response()).status == 200
    assert len(engine.calls) == 60


async def test_stale_pooled_connections_are_retried(table: Bench) -> None:
    """The target hangs up on what it thinks is idle while a request is on its way: it is sent again on a new one."""
    answered = 0

    async def fickle(call: Call) -> None:
        nonlocal answered
        # Every second request on a connection is met by a closed door.
        if answered % 2 and call.connection in met:
            met.discard(call.connection)
            call.hang_up() if answered % 4 == 1 else call.reset()
            return
        met.add(call.connection)
        answered += 1
        call.answer(ANSWERS[call.path])

    met: set[int] = set()
    engine = await table.serve(fickle)
    for _ in range(100):
        response = await table.call(ask())
        assert response.status == 200
    assert table.gateway.outcomes == ["answered"] * 100
    assert len(engine.calls) > 100


async def test_closed_idle_connections_are_not_used(table: Bench) -> None:
    engine = await table.serve(well)
    for _ in range(5):
        await table.call(ask())
        engine.hang_up_idle()
        await engine.watch.until(lambda: engine.open == 0)
    assert engine.accepted == 5


async def test_idle_connections_expire(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await table.serve(well)
    await table.call(ask())
    await table.call(ask())
    assert engine.accepted == 1
    monkeypatch.setattr(upstream_module, "IDLE_SECONDS", -1.0)
    await table.call(ask())
    assert engine.accepted == 2


async def test_pool_size_is_bounded(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "MAX_IDLE", 2)
    engine = await table.serve(well, slots=8)
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(table.call(ask()))
    await engine.watch.until(lambda: engine.open <= 2)


# -- before the first byte


def _raw(data: bytes, *, hang_up: bool = True) -> Script:
    async def script(call: Call) -> None:
        call.send(data)
        if hang_up:
            call.hang_up()

    return script


async def _reset(call: Call) -> None:
    call.reset()


CUT = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FATAL: dict[str, Script] = {
    "hangs up": _raw(b""),
    "resets": _reset,
    "half a head": _raw(b"HTTP/1.1 200 OK\r\ncontent-ty"),
    "a head and no more": _raw(CUT[:-1]),
    "a head and half a body": _raw(CUT),
    "a head of events and no more": _raw(EVENTS),
    "a comment and no more": _raw(EVENTS + b"8\r\n: here\n\n\r\n"),
    "half an event": _raw(EVENTS + b'10\r\ndata: {"choices":\r\n'),
    "garbage": _raw(b"\x00\x01\x02 what?\r\n\r\n"),
    "another protocol": _raw(b"SSH-2.0-OpenSSH_9.6\r\n", hang_up=False),
    "an endless head": _raw(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70_000, hang_up=False),
    "endless interim answers": _raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, hang_up=False),
    "another protocol, politely": _raw(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello"),
    "two lengths": _raw(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}"),
    "a bad chunk": _raw(EVENTS + b"zz\r\n"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("script", FATAL.values(), ids=FATAL.keys())
async def test_failure_before_the_first_byte_is_retried(table: Bench, script: Script) -> None:
    bad, good = await table.backend(script), await table.backend(well)
    table.publish(backends=(backend(bad.address, "m"), backend(good.address, "m")))
    for stream in (False, True):
        response = await table.call(ask(stream=stream))
        assert response.status == 200
        assert b"Hello" in response.body
    assert len(bad.calls) == 2
    assert table.gateway.outcomes == ["answered"] * 2


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.usefixtures("quick_again")
@pytest.mark.parametrize("script", FATAL.values(), ids=FATAL.keys())
async def test_failure_without_another_target_is_an_error(table: Bench, script: Script) -> None:
    await table.serve(script)
    response = await table.call(ask("/v1/messages"))
    assert (response.status, response.headers["retry-after"]) == (502, "5")
    assert response.json["error"]["type"] == "api_error"
    for path in STREAMING:
        response = await table.call(ask(path, stream=True))
        if response.status == 200:  # it was told that it has to wait before that was known
            assert told(path, response)["code"] == "upstream_lost"
        else:
            assert response.status == 502
    await table.idle()


@pytest.mark.usefixtures("quick")
async def test_request_waits_for_the_next_engine_process(table: Bench) -> None:
    """The engine is killed under a request; the supervisor starts another; the caller never hears of it."""
    first, second = await table.engine(never), await table.engine(well)
    table.publish(served("m", first.address))
    callers = [await table.caller() for _ in range(3)]
    for number, caller in enumerate(callers):
        caller.send(ask(stream=number == 1))
    await first.watch.until(lambda: len(first.calls) == 3)
    await first.die()
    table.publish(served("m", second.address, generation=2))
    for caller in callers:
        response = await caller.response()
        assert response.status == 200
        assert b"Hello" in response.body
        await caller.close()
    await table.idle()


FAILED = b'{"error":{"code":500,"message":"Compute error.","type":"server_error"}}'
SPLIT = SplitState(
    lease=Lease(
        b"s" * 16, 1, "m", (), (WorkerShare(NodeId(b"a" * 32), 0, 1, 1), WorkerShare(NodeId(b"b" * 32), 1, 1, 1))
    ),
    committed=True,
)


@pytest.mark.usefixtures("quick")
async def test_worker_loss_before_the_response_is_retried(table: Bench) -> None:
    """What was to be computed by several nodes is computed by the next generation of them."""
    second = await table.engine(well)

    async def fails(call: Call) -> None:
        call.answer(FAILED, status=500)

    async def lost(call: Call) -> None:
        table.publish(replace(served("m", second.address, generation=2), split=SPLIT))
        await fails(call)

    first = await table.engine(lost)
    for stream in (False, True):
        table.publish(replace(served("m", first.address), split=SPLIT))
        response = await table.call(ask(stream=stream))
        assert response.status == 200
        assert b"Hello" in response.body
    assert len(first.calls) == 2
    # Of an engine that has nobody to lose it is the answer.
    alone = await table.serve(fails)
    response = await table.call(ask())
    assert (response.status, response.json["error"]["message"]) == (500, "Compute error.")
    assert len(alone.calls) == 1
    await table.idle()


def compute_error(path: str) -> bytes:
    """The same in a stream."""
    if path in ("/v1/chat/completions", "/v1/completions"):
        return b"data: " + FAILED + b"\n\n"
    return b'event: error\ndata: {"code":500,"message":"Compute error.","type":"server_error"}\n\n'


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", STREAMING)
async def test_stream_failure_before_the_first_token_is_retried(table: Bench, path: str) -> None:
    second = await table.engine(well)

    async def lost(call: Call) -> None:
        table.publish(replace(served("m", second.address, generation=2), split=SPLIT))
        call.stream(compute_error(call.path))
        call.hang_up()

    first = await table.engine(lost)
    table.publish(replace(served("m", first.address), split=SPLIT))
    response = await table.call(ask(path, stream=True))
    assert b"Hello" in response.body
    assert b"ompute" not in response.body
    assert (len(first.calls), len(second.calls)) == (1, 1)
    await table.idle()


@pytest.mark.parametrize("path", STREAMING)
async def test_worker_loss_in_a_stream_is_a_typed_error(table: Bench, path: str) -> None:
    """Whether the engine finds it out first, or the daemon, which ends the engine."""
    heard = asyncio.Event()
    why = "bbbb is lost to the split: the link to it is gone"

    async def begin(call: Call) -> None:
        call.begin_stream()
        for event in STREAMS[call.path][:3]:
            call.chunk(event)
        await heard.wait()

    async def engine_first(call: Call) -> None:
        await begin(call)
        call.chunk(compute_error(call.path))
        call.end_stream()
        call.hang_up()

    async def daemon_first(call: Call) -> None:
        await begin(call)
        ending = replace(served("m", call.upstream.address), server=ServerPhase.STOPPING, server_facts=None)
        table.publish(replace(ending, split=SplitState(why), reason=why))
        call.reset()

    for script, known in ((engine_first, ""), (daemon_first, why)):
        heard.clear()
        engine = await table.engine(script)
        table.publish(replace(served("m", engine.address), split=SPLIT))
        caller = await table.caller()
        caller.send(ask(path, stream=True))
        response = await caller.head()
        response.body = await caller.piece()
        heard.set()
        while piece := await caller.piece():
            response.body += piece
        error = told(path, response)
        assert (error["code"], error["message"]) == ("upstream_lost", worker_loss_message("m", known))
        assert len(engine.calls) == 1
        await caller.close()
    assert table.gateway.outcomes == ["lost", "lost"]
    await table.idle()


@pytest.mark.usefixtures("quick_again")
async def test_unreachable_backend_is_an_error(table: Bench) -> None:
    table.publish(served("m", str(table.folder / "nobody.sock")), backends=(backend("http://127.0.0.1:9", "m"),))
    assert (await table.call(ask())).status == 502
    name = "x" * 70 + ".local"  # which cannot even be looked up
    table.publish(backends=(backend(f"http://{name}", "m"),))
    assert (await table.call(ask())).status == 502
    table.publish(served("m", str(table.folder / ("x" * 200))))
    assert (await table.call(ask())).status == 502
    await table.idle()


# -- after the first byte


STREAM_FAULTS: dict[str, bytes | None] = {
    "hangs up between two events": b"",
    "hangs up in an event": b'20\r\ndata: {"choi\r\n',
    "hangs up in a chunk": b"20\r\ndata: {",
    "resets": None,
    "breaks its chunks": b"what?\r\n",
}


@pytest.mark.parametrize("fault", STREAM_FAULTS.values(), ids=STREAM_FAULTS.keys())
@pytest.mark.usefixtures("quick_again")
async def test_failure_after_the_first_byte_is_a_typed_error(table: Bench, fault: bytes | None) -> None:
    heard = asyncio.Event()

    async def script(call: Call) -> None:
        call.begin_stream()
        for event in STREAMS[call.path][:3]:
            call.chunk(event)
        await call.drained()
        await heard.wait()
        if fault is None:
            call.reset()
        else:
            call.send(fault)
            call.hang_up()

    engine = await table.serve(script)
    for path in STREAMING:
        heard.clear()
        caller = await table.caller()
        caller.send(ask(path, stream=True))
        response = await caller.head()
        response.body = await caller.piece()
        heard.set()
        while piece := await caller.piece():
            response.body += piece
        assert response.status == 200
        assert told(path, response)["code"] in ("upstream_lost", None)
        # The connection is in order: what comes next on it is answered.
        caller.send(request("GET", "/health"))
        assert (await caller.response()).json == {"status": "ok"}
        await caller.close()
    assert table.gateway.outcomes == ["lost"] * len(STREAMING)
    assert len(engine.calls) == len(STREAMING), "a stream that has begun is not begun again"
    await table.idle()


@pytest.mark.parametrize("path", STREAMING)
async def test_failure_after_the_end_of_a_stream_is_ignored(table: Bench, path: str) -> None:
    """The last event has come; the last chunk never does, or anything else does."""
    for rest in (b"", b"zz\r\n", b"5\r\nda", b"1000\r\n" + b"data: more\n\n" * 100, None):

        async def script(call: Call, rest: bytes | None = rest) -> None:
            call.begin_stream()
            for event in STREAMS[call.path]:
                call.chunk(event)
            if rest is None:
                call.reset()
            else:
                call.send(rest)
                call.hang_up()

        await table.serve(script)
        response = await table.call(ask(path, stream=True))
        assert b"more" not in response.body
        if rest is not None:  # a reset may overtake what was sent before it
            assert b'"error":{' not in response.body
            assert table.gateway.outcomes[-1] == "answered"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("chatter", [False, True])
async def test_complete_stream_ends_if_its_target_stays_open(
    table: Bench, monkeypatch: pytest.MonkeyPatch, chatter: bool
) -> None:
    monkeypatch.setattr("meshllm.web.gateway.relay.LINGER_SECONDS", 0.03)

    async def script(call: Call) -> None:
        call.begin_stream()
        for event in STREAMS[call.path]:
            call.chunk(event)
        loop = asyncio.get_running_loop()

        def talk() -> None:
            if not call.writer.is_closing():
                call.chunk(b": still here\n\n")
                loop.call_later(0.005, talk)

        if chatter:
            talk()
        await call.gone()
        call.writer.close()

    await table.pool(script)
    for path in STREAMING:
        response = await table.call(ask(path, stream=True))
        assert b"Hello" in response.body
    assert table.gateway.outcomes == ["answered"] * len(STREAMING)


async def test_error_event_ends_the_stream(table: Bench) -> None:
    async def script(call: Call) -> None:
        call.begin_stream()
        call.chunk(chat_chunk({"role": "assistant", "content": "a"}))
        call.chunk(b'data: {"error":{"code":500,"message":"out of memory","type":"server_error"}}\n\n')
        call.end_stream()
        call.hang_up()

    await table.serve(script)
    response = await table.call(ask(stream=True))
    assert response.body.endswith(DONE)
    assert b'"message":"out of memory"' in response.body
    assert table.gateway.outcomes == ["failed"]


async def test_event_size_is_bounded(table: Bench) -> None:
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        call.begin_stream()
        for event in STREAMS[call.path][:3]:
            call.chunk(event)
        call.chunk(b"data: ")
        while not call.writer.is_closing():
            call.chunk(b"x" * 65536)
            sent += 65536
            await call.drained()

    await table.serve(script)
    response = await table.call(ask("/v1/messages", stream=True))
    assert told("/v1/messages", response)["code"] == "event_too_large"
    await table.idle()
    assert sent < 128 << 20


# -- answers that are not streams


async def test_response_framings(table: Bench) -> None:
    body = json.dumps(ANSWERS["/v1/completions"]).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    framings = [
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
        head + b"\r\n" + body,
        head + b"Connection: close\r\n\r\n" + body,
        head.replace(b"1.1", b"1.0") + b"\r\n" + body,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + head + b"\r\n" + body,
        head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body + b"and more",
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\x00garbage",
    ]
    answer = framings[0]

    async def script(call: Call) -> None:
        call.send(answer)
        await call.drained()
        call.hang_up()

    upstream = await table.pool(script)
    for number, answer in enumerate(framings):  # noqa: B007 - `script` reads it
        response = await table.call(ask("/v1/completions"))
        assert (number, response.status, response.body) == (number, 200, body)
    assert len(upstream.calls) == len(framings)


async def test_unrequested_data_closes_the_connection(table: Bench) -> None:
    """An answer too many spoils its connection, not the next caller's answer."""

    async def script(call: Call) -> None:
        call.answer({"number": call.json["number"]})
        call.answer({"poison": True})
        await call.drained()

    upstream = await table.pool(script)
    for number in range(10):
        assert (await table.call(ask(number=number))).json == {"number": number}
    assert upstream.accepted == 10


ERRORS: dict[str, tuple[bytes, str, int, int]] = {
    "the engine's": (
        b'{"error":{"code":400,"message":"bad","type":"invalid_request_error"}}',
        "application/json",
        400,
        400,
    ),
    "HTML": (
        b"<html><head><title>x</title></head><body><h1>502 Bad Gateway</h1>nginx</body></html>",
        "text/html",
        502,
        502,
    ),
    "text": (b"upstream connect error", "text/plain", 503, 503),
    "nothing": (b"", "", 500, 500),
    "a bare message": (b'{"detail":"Not Found"}', "application/json", 404, 404),
    "not UTF-8": (b"\xff\xfe\x00", "application/json", 500, 500),
    "deep": (b"[" * 100_000, "application/json", 500, 500),
    "a redirect": (b"", "", 302, 502),
    "nothing, successfully": (b"", "", 204, 502),
    "HTML, successfully": (b"<html><body>Log in</body></html>", "text/html", 200, 502),
    "a strange status": (b"{}", "application/json", 999, 502),
    "nothing as JSON": (b"", "application/json", 200, 502),
}


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS.keys())
async def test_upstream_errors_are_translated_to_the_callers_api(
    table: Bench, case: tuple[bytes, str, int, int]
) -> None:
    body, content_type, given, wanted = case

    async def script(call: Call) -> None:
        if given == 204:
            call.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            call.answer(body, given, content_type)

    await table.pool(script)
    for path in STREAMS:
        for stream in (False, True):
            response = await table.call(ask(path, stream=stream))
            assert response.status == wanted
            assert response.json["error"]["message"]
            assert ("type" in response.json) == (path == "/v1/messages")
            assert b"<" not in response.body
    assert set(table.gateway.outcomes) <= {"failed", "refused"}


async def test_response_instead_of_a_stream_is_an_error(table: Bench) -> None:
    async def script(call: Call) -> None:
        call.answer(ANSWERS[call.path])

    await table.pool(script)
    for path in STREAMS:
        response = await table.call(ask(path, stream=True))
        assert (response.status, response.json["error"]["code"]) == (502, "upstream_error")


async def test_unrepairable_responses_are_forwarded(table: Bench) -> None:
    deep = b'{"id":"x","output":' + b"[" * 500 + b"]" * 500 + b"}"
    counts = json.dumps({"usage": {"input_tokens": (1 << 64) - 1, "output_tokens": (1 << 64) - 1}}).encode()
    answer = deep

    async def script(call: Call) -> None:
        call.answer(answer)

    await table.serve(script)
    for answer in (deep, counts):  # noqa: B007 - `script` reads it
        for path in ("/v1/responses", "/v1/messages"):
            response = await table.call(ask(path))
            assert response.status == 200


async def test_deeply_nested_request_is_forwarded(table: Bench) -> None:
    """A body that is nested more deeply than orjson writes is prepared all the same."""
    engine = await table.serve(well)
    deep = b"[" * 600 + b"]" * 600
    body = b'{"model":"m","metadata":' + deep + b',"input":[{"role":"assistant","content":"a"}]}'
    response = await table.call(request("POST", "/v1/responses", body))
    assert response.status == 200
    assert json.loads(engine.calls[0].body)["input"][0]["type"] == "message"
    assert engine.calls[0].body.count(deep) == 1
    streamed = body.replace(b'{"model"', b'{"stream":true,"model"')
    assert (await table.call(request("POST", "/v1/responses", streamed))).status == 200


async def test_response_size_is_bounded(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.relay.MAX_RESPONSE_BYTES", 1 << 20)

    async def script(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while not call.writer.is_closing():
            call.send(b" " * 65536)
            await call.drained()

    engine = await table.serve(script)
    response = await table.call(ask())
    assert (response.status, response.json["error"]["code"]) == (502, "upstream_error")
    await engine.watch.until(lambda: engine.open == 0)


@pytest.mark.usefixtures("quick")
async def test_silent_backend_times_out(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.relay.BACKEND_SILENCE_SECONDS", 0.05)

    async def half(call: Call) -> None:
        call.begin_stream()
        call.chunk(STREAMS[call.path][0])
        await call.gone()

    upstream = await table.pool(never)
    response = await table.call(ask())
    assert (response.status, response.json["error"]["code"]) == (504, "upstream_timeout")
    for script in (never, half):
        upstream.script = script
        for path in STREAMING:
            response = await table.call(ask(path, stream=True))
            if response.status == 200:
                assert told(path, response)["code"] == "upstream_timeout"
            else:  # on a busy machine the time is up before there was any to say so
                assert (response.status, script) == (504, never)
    await upstream.watch.until(lambda: upstream.open == 0)


# -- callers that leave


async def leaves(table: Bench, upstream: Upstream, data: bytes, ready: str) -> None:
    """A caller hangs up, properly or not, once it has asked: the target hears of it, and the slot is free."""
    for abruptly in (False, True):
        calls = len(upstream.calls)
        caller = await table.caller()
        caller.send(data)
        await upstream.watch.until(lambda n=calls: len(upstream.calls) > n)  # type: ignore[misc]
        if ready == "heard":
            await caller.head()
            await caller.piece()
        assert table.gateway.active == 1
        if abruptly:
            caller.abort()
        else:
            await caller.close()
        await upstream.watch.until(lambda: upstream.open == 0)
        await table.idle()
    assert table.gateway.outcomes[-2:] == ["abandoned"] * 2


async def _streaming(call: Call) -> None:
    call.begin_stream()
    call.chunk(STREAMS[call.path][0] + STREAMS[call.path][1])
    await call.gone()


async def _half_answer(call: Call) -> None:
    call.send(CUT)
    await call.gone()


@pytest.mark.parametrize("kind", ["engine", "backend"])
async def test_caller_disconnect_stops_the_work(table: Bench, kind: str) -> None:
    upstream = await (table.serve(never) if kind == "engine" else table.pool(never))
    await leaves(table, upstream, ask(), "asked")
    await leaves(table, upstream, ask(stream=True), "asked")
    upstream.script = _half_answer
    await leaves(table, upstream, ask(), "asked")
    upstream.script = _streaming
    await leaves(table, upstream, ask(stream=True), "heard")
    upstream.script = well
    assert (await table.call(ask())).status == 200


async def test_caller_disconnect_while_connecting(folder: Path) -> None:
    """The connection that comes too late is closed at once."""
    async with bench(folder) as table:
        engine = await table.serve(well)
        caller = await table.caller()
        caller.send(ask())
        await caller.writer.drain()
        caller.abort()
        await table.idle()
        await engine.watch.until(lambda: engine.open == 0)
        assert (await table.call(ask())).status == 200


async def test_caller_disconnect_before_its_request_has_begun(table: Bench) -> None:
    """The bytes of a request and the end of the connection come in one turn of the loop."""
    engine = await table.serve(well)
    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info.return_value = ("127.0.0.1", 1)
    transport.is_closing.return_value = False
    gateway = table.gateway
    connection = Connection(gateway, gateway._connections, asyncio.get_running_loop())
    connection.connection_made(transport)
    connection.data_received(ask())
    connection.connection_lost(None)
    await table.gateway.watch.until(lambda: bool(table.gateway.outcomes))
    assert (table.gateway.outcomes, engine.calls) == (["abandoned"], [])
    await table.idle()


async def test_removed_target_finishes_its_responses(table: Bench) -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await well(call)

    upstream = await table.pool(script)
    callers = [await table.caller() for _ in range(2)]
    callers[0].send(ask())
    callers[1].send(ask("/v1/messages/count_tokens"))
    await upstream.watch.until(lambda: len(upstream.calls) == 2)
    table.publish()
    release.set()
    for caller in callers:
        assert (await caller.response()).status == 200
    table.publish()
    assert not table.gateway.target_queues()
    await upstream.watch.until(lambda: upstream.open == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_defect_in_a_request_ends_that_request_alone(
    table: Bench, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Its caller gets a 500, its slot is free, and the log has it."""
    engine = await table.serve(well)

    def defect(self: ApiRequest, *arguments: object, **options: object) -> bytes:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(ApiRequest, "wire", defect)
        caller = await table.caller()
        caller.send(ask(stream=stream))
        response = await caller.response()
        assert (response.status, response.json["error"]["code"]) == (500, "internal_error")
        caller.abort()
        await table.idle()
    assert table.gateway.outcomes == ["failed"]
    assert any("ZeroDivisionError" in fault for fault in table.faults)
    table.faults.clear()
    assert (await table.call(ask(stream=stream))).status == 200
    assert len(engine.calls) == 1
