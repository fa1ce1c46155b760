"""The server side of HTTP/1.1: framing, limits, accounting, and callers that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from pathlib import Path

import pytest
from web_rig import PATIENCE, Bench, Call, Caller, ask, bench, never, request, well

GET = request("GET", "/health")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can reach."""
    monkeypatch.setattr("meshllm.web.http.parser.MAX_HEAD_BYTES", 2000)
    monkeypatch.setattr("meshllm.web.http.parser.MAX_BODY_BYTES", 10_000)
    monkeypatch.setattr("meshllm.web.http.parser.MAX_BODIES_BYTES", 25_000)


async def refused(caller: Caller, status: int) -> str:
    """The next answer is an error with `status`, after which the server hangs up."""
    response = await caller.response()
    assert response.status == status
    assert response.headers["connection"] == "close"
    assert await caller.eof() == b""
    await caller.close()
    return str(response.json["error"]["message"])


async def test_connection_is_reused_for_many_requests(table: Bench) -> None:
    engine = await table.serve()
    caller = await table.caller()
    for number in range(20):
        caller.send(ask(number=number))
        assert (await caller.response()).status == 200
        caller.send(ask(stream=True))
        assert (await caller.response()).status == 200
    assert table.gateway.live == 1
    assert len(engine.calls) == 40


async def test_pipelined_requests_are_answered_in_order(table: Bench) -> None:
    async def echo(call: Call) -> None:
        call.answer(call.json)

    await table.serve(echo)
    caller = await table.caller()
    caller.send(b"".join(ask(number=number) for number in range(8)))
    assert [(await caller.response()).json["number"] for _ in range(8)] == list(range(8))
    caller.send(GET + ask(number=1) + request("GET", "/nothing") + ask(number=2))
    assert [(await caller.response()).status for _ in range(4)] == [200, 200, 404, 200]
    await caller.close()
    await table.idle()


async def test_pipelining_is_bounded(table: Bench) -> None:
    release = asyncio.Event()

    async def later(call: Call) -> None:
        await release.wait()
        await well(call)

    await table.serve(later)
    caller = await table.caller()
    caller.send(ask() + ask() * 50)
    await table.gateway.watch.until(lambda: table.gateway.active == 1)
    release.set()
    answers = 0
    while True:
        try:
            assert (await caller.response()).status == 200
        except EOFError:
            break
        answers += 1
    assert 1 <= answers < 51
    await caller.close()
    await table.idle()


async def test_request_may_arrive_byte_by_byte(table: Bench) -> None:
    await table.serve()
    caller = await table.caller()
    for byte in ask("/v1/messages") + GET:
        caller.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await caller.response()).status == 200
    assert (await caller.response()).json == {"status": "ok"}


async def test_chunked_body_with_extensions_and_trailers(table: Bench) -> None:
    engine = await table.serve()
    body = json.dumps({"model": "m", "text": "x" * 1000}).encode()
    chunks = b"".join(
        b"%x;name=value\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7)
    )
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    caller = await table.caller()
    for _ in range(2):
        caller.send(head + chunks + b"0\r\nHost: evil.com\r\nOrigin: http://evil.com\r\n\r\n")
        assert (await caller.response()).status == 200
    assert engine.calls[-1].body == body
    assert b"content-length: %d\r\n" % len(body) in engine.calls[-1].head
    assert table.gateway.body_bytes == 0


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: 5, 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding : chunked",
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999999",
        b"X: a\r\n folded: b",
        b"X: a\rb",
        b"X: a\x00b",
        b"X y: z",
        b": z",
        b"Host: evil.com",
        b"Origin: http://localhost\r\nOrigin: http://localhost",
        b"Content-Type: application/json\r\nContent-Type: text/plain",
        b"Authorization: a\r\nAuthorization: b",
    ],
)
async def test_ambiguous_requests_are_rejected(table: Bench, lines: bytes) -> None:
    engine = await table.serve()
    caller = await table.caller()
    caller.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n\r\n")
    await refused(caller, 400)
    assert not engine.calls
    await table.idle()


@pytest.mark.parametrize("line", [b"GET / HTTP/3.7", b"PRI * HTTP/2.0", b"\x16\x03\x01\x02", b"G"])
async def test_malformed_request_lines_are_rejected(table: Bench, line: bytes) -> None:
    caller = await table.caller()
    caller.send(line + b"\r\nHost: localhost\r\n\r\n")
    await refused(caller, 400)


async def test_other_http_versions_are_rejected(table: Bench) -> None:
    for line in (b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"GET /"):
        caller = await table.caller()
        caller.send(line + b"\r\nHost: localhost\r\n\r\n")
        await refused(caller, 505)


async def test_rejection_comes_after_owed_responses(table: Bench) -> None:
    """What follows a sound request cannot take its answer's place, nor cut it short."""
    release = asyncio.Event()

    async def later(call: Call) -> None:
        call.begin_stream()
        await release.wait()
        call.chunk(b"data: [DONE]\n\n")
        call.end_stream()
        call.hang_up()

    await table.serve(later)
    caller = await table.caller()
    caller.send(GET + b"\x00garbage\r\n\r\n")
    assert (await caller.response()).json == {"status": "ok"}
    await refused(caller, 400)
    caller = await table.caller()
    caller.send(ask(stream=True))
    await table.gateway.watch.until(lambda: table.gateway.active == 1)
    caller.send(b"\x00garbage\r\n\r\n" * 100)
    release.set()
    assert (await caller.response()).status == 200
    await refused(caller, 400)
    await table.idle()


async def test_connection_close_ignores_later_requests(table: Bench) -> None:
    caller = await table.caller()
    caller.send(request("GET", "/health", headers={"Connection": "close"}))
    assert (await caller.response()).headers["connection"] == "close"
    assert await caller.eof() == b""
    caller = await table.caller()
    caller.send(request("GET", "/health", headers={"Connection": "close"}) + GET)
    assert (await caller.response()).status == 200
    assert await caller.eof() == b""
    await caller.close()
    await table.idle()


async def test_http_1_0_requests(table: Bench) -> None:
    await table.serve()
    caller = await table.caller()
    caller.send(request("POST", "/v1/completions", {"model": "m"}, version="1.0"))
    assert (await caller.response()).status == 200
    assert await caller.eof() == b""
    # A stream has no chunks then: it ends with the connection, even if that was to be kept.
    caller = await table.caller()
    data = request(
        "POST", "/v1/completions", {"model": "m", "stream": True}, {"Connection": "keep-alive"}, version="1.0"
    )
    caller.send(data)
    answer = await caller.eof()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    # One that is kept says so, or a client of that age would wait for its end.
    caller = await table.caller()
    for _ in range(2):
        caller.send(request("GET", "/health", headers={"Connection": "keep-alive"}, version="1.0"))
        assert (await caller.response()).headers["connection"] == "keep-alive"


async def test_upgrade_header_is_ignored(table: Bench) -> None:
    await table.serve()
    caller = await table.caller()
    wishes = (
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA"},
        {"Connection": "Upgrade", "Upgrade": "websocket"},
    )
    for wish in wishes:
        caller.send(request("GET", "/health", headers=wish) + request("POST", "/v1/rerank", {"model": "m"}, wish) + GET)
        assert [(await caller.response()).status for _ in range(3)] == [200, 200, 200]
    for byte in request("GET", "/health", headers=wishes[0]) + GET:
        caller.send(bytes([byte]))
        await asyncio.sleep(0)
    assert [(await caller.response()).status for _ in range(2)] == [200, 200]
    caller.send(request("CONNECT", "localhost:22"))
    assert (await caller.response()).status in (400, 404)


async def test_100_continue_is_sent(table: Bench) -> None:
    await table.serve()
    caller = await table.caller()
    head, _, body = request("POST", "/v1/completions", {"model": "m"}, {"Expect": "100-continue"}).partition(
        b"\r\n\r\n"
    )
    for _ in range(2):
        caller.send(head + b"\r\n\r\n")
        assert (await caller.head(interim=True)).status == 100
        caller.send(body)
        assert (await caller.response()).status == 200
    # HTTP/1.0 knows no interim answers.
    caller = await table.caller()
    caller.send(head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n\r\n" + body)
    assert (await caller.head(interim=True)).status == 200


async def test_100_continue_for_a_pipelined_request(table: Bench) -> None:
    release = asyncio.Event()

    async def later(call: Call) -> None:
        await release.wait()
        await well(call)

    await table.serve(later)
    caller = await table.caller()
    head, _, body = request("POST", "/v1/completions", {"model": "m"}, {"Expect": "100-continue"}).partition(
        b"\r\n\r\n"
    )
    caller.send(ask())
    await table.gateway.watch.until(lambda: table.gateway.active == 1)
    caller.send(head + b"\r\n\r\n")
    release.set()
    assert (await caller.response()).status == 200
    assert (await caller.head(interim=True)).status == 100
    caller.send(body)
    assert (await caller.response()).status == 200


@pytest.mark.usefixtures("small")
async def test_head_size_is_bounded(table: Bench) -> None:
    long = request("GET", "/health", headers={"X": "x" * 3000})
    caller = await table.caller()
    caller.send(long)
    assert "2000 bytes" in await refused(caller, 431)
    caller = await table.caller()
    caller.send(b"\r\n" * 2000)
    await refused(caller, 431)
    # Whatever way it is split, and behind whatever it comes.
    caller = await table.caller()
    caller.send(GET + long[:-2] + b"X: x\r\n" * 500)
    assert (await caller.response()).status == 200
    await refused(caller, 431)
    caller = await table.caller()
    for part in (long[:1500], long[1500:2900]):
        caller.send(part)
        await asyncio.sleep(0)
    caller.send(b"y" * 4000)
    await refused(caller, 431)
    await table.idle()


@pytest.mark.usefixtures("small")
async def test_head_size_is_bounded_during_another_request(table: Bench) -> None:
    await table.serve(never)
    caller = await table.caller()
    caller.send(ask())
    await table.gateway.watch.until(lambda: table.gateway.active == 1)
    caller.send(GET + b"GET /health HTTP/1.1\r\n")
    for _ in range(20):
        caller.send(b"X: " + b"x" * 1000 + b"\r\n")
    connection = next(iter(table.gateway._connections.live))
    # It stops taking more in: nothing of what follows is kept.
    async with asyncio.timeout(PATIENCE):
        while connection._rejection is None:  # noqa: ASYNC110 - what it waits for is that a loop of ours has read on
            await asyncio.sleep(0)
    caller.abort()
    await table.idle()


@pytest.mark.usefixtures("small")
async def test_body_size_is_bounded(table: Bench) -> None:
    caller = await table.caller()
    caller.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10001\r\n\r\n")
    await refused(caller, 413)
    caller = await table.caller()
    caller.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(11):
        caller.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    await refused(caller, 413)
    # Little of a body, but much around it.
    caller = await table.caller()
    caller.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    caller.send(b"1;" + b"x" * 30_000)
    await refused(caller, 413)
    await table.idle()


async def test_gzip_bodies_are_expanded(table: Bench) -> None:
    async def echo(call: Call) -> None:
        call.answer(call.json)

    await table.serve(echo)
    caller = await table.caller()
    for coding in ("gzip", "X-Gzip"):
        whole = ask(text="a" * 5000)
        body = gzip.compress(whole.partition(b"\r\n\r\n")[2])
        caller.send(request("POST", "/v1/chat/completions", body, {"Content-Encoding": coding}))
        assert (await caller.response()).json["text"] == "a" * 5000
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
    caller.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(body), 10):
        caller.send(b"%x\r\n%b\r\n" % (len(body[at : at + 10]), body[at : at + 10]))
    caller.send(b"0\r\n\r\n" + ask(number=2))
    assert (await caller.response()).json["text"] == "a" * 5000
    assert (await caller.response()).json["number"] == 2
    await caller.close()
    await table.idle()


@pytest.mark.usefixtures("small")
async def test_expanded_bodies_are_bounded_and_whole(table: Bench) -> None:
    fitting, large = gzip.compress(b" " * 9000), gzip.compress(b" " * 10_001)
    for coding, body, status in (
        ("gzip", large, 413),
        ("gzip", b"{}", 400),
        ("gzip", fitting[:-1], 400),
        ("gzip", fitting[:5], 400),
        ("gzip", fitting + b"x", 400),
        ("zstd", b"{}", 415),
        ("gzip, gzip", fitting, 415),
    ):
        caller = await table.caller()
        caller.send(request("POST", "/v1/messages", body, {"Content-Encoding": coding}))
        assert "gzip" in await refused(caller, status) or status == 413
    callers = [await table.caller() for _ in range(3)]
    for caller in callers[:2]:  # never complete, but their memory counts
        caller.send(request("POST", "/v1/messages", gzip.compress(b" " * 9900), {"Content-Encoding": "gzip"})[:-8])
    await table.gateway.watch.until(lambda: table.gateway.live == 3)
    callers[2].send(request("POST", "/v1/messages", fitting, {"Content-Encoding": "gzip"}))
    await refused(callers[2], 503)
    for caller in callers[:2]:
        await caller.close()
    await table.idle()


async def test_absolute_targets_are_judged_by_their_host(table: Bench) -> None:
    await table.serve()
    caller = await table.caller()
    for url in ("http://localhost:9337/v1/models", "HTTP://127.0.0.1/v1/models?a=/b", "http://[::1]:1/v1//models"):
        caller.send(request("GET", url))
        assert (await caller.response()).json["object"] == "list"
    for url, status in (("http://localhost", 200), ("http://localhost/a", 404), ("ftp://localhost/v1/models", 404)):
        caller.send(request("GET", url))
        assert (await caller.response()).status == status
    # Whatever the Host header says.
    for url in ("http://example.com/v1/models", "http://localhost@example.com/v1/models", "http:///v1/models"):
        caller.send(request("GET", url))
        assert (await caller.response()).status == 403
    await caller.close()


async def test_rejected_caller_that_still_sends_can_read_the_error(
    table: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.web.http.parser.MAX_BODY_BYTES", 10_000)
    caller = await table.caller()
    size = 4 << 20
    caller.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
    # As the usual clients do: all of it is sent before the answer is looked at.
    caller.send(b"x" * size)
    await caller.writer.drain()
    assert (await caller.response()).status == 413


@pytest.mark.usefixtures("small")
async def test_memory_of_all_bodies_is_bounded(table: Bench) -> None:
    engine = await table.serve(never, slots=1)
    body = {"model": "m", "text": "x" * 9000}
    callers = [await table.caller() for _ in range(3)]
    for number, caller in enumerate(callers[:2], 1):
        caller.send(request("POST", "/v1/completions", body))
        await table.gateway.watch.until(lambda n=number: table.gateway.active + table.gateway.queued == n)  # type: ignore[misc]
    assert len(engine.calls) <= 1
    assert 18_000 < table.gateway.body_bytes < 19_000
    callers[2].send(request("POST", "/v1/completions", body))
    response = await callers[2].response()
    assert response.status == 503
    for caller in callers:
        caller.abort()
    await table.idle()


@pytest.mark.usefixtures("quick")
async def test_request_timeouts(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(f"meshllm.web.http.server.{name}", 0.3)
    monkeypatch.setattr("meshllm.web.http.server.IDLE_SECONDS", 0.4)
    silent = await table.caller()
    kept = await table.caller()
    kept.send(GET)
    assert (await kept.response()).status == 200
    half_head, half_body = await table.caller(), await table.caller()
    half_head.send(b"GET /health HT")
    half_body.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabc")
    for caller in (half_head, half_body):
        await refused(caller, 408)
    for caller in (silent, kept):
        assert await caller.eof() == b""
    await table.idle()


async def test_every_connection_is_swept(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that comes just as the gateway, having no others, stops looking at the time."""
    monkeypatch.setattr("meshllm.web.gateway.gateway.SWEEP_SECONDS", 0.0)
    monkeypatch.setattr("meshllm.web.http.server.HEAD_SECONDS", 0.0)
    for _ in range(20):
        caller = await table.caller()
        assert await caller.eof() == b""
        await caller.close()
        await table.idle()


@pytest.mark.usefixtures("quick")
async def test_slow_head_gets_no_extra_time(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.http.server.HEAD_SECONDS", 0.3)
    caller = await table.caller()
    caller.send(b"GET /health HTTP/1.1\r\nX: ")
    response = asyncio.get_running_loop().create_future()

    def trickle() -> None:
        if not response.done():
            caller.send(b"x")
            asyncio.get_running_loop().call_later(0.005, trickle)

    trickle()
    answer = await caller.response()
    response.set_result(None)
    assert answer.status == 408


async def test_too_many_busy_connections_are_503(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.http.connections.connection_limit", lambda: 2)
    async with bench(folder) as table:
        await table.serve(never)
        for number in range(2):
            (await table.caller()).send(ask())
            await table.gateway.watch.until(lambda number=number: table.gateway.active == number + 1)
        await refused(await table.caller(), 503)


# -- callers that do not read


def deaf(caller: Caller) -> None:
    """From now on it takes no more than its buffers hold."""
    caller.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.writer.transport.pause_reading()  # type: ignore[attr-defined]


async def test_slow_caller_slows_the_target_down(table: Bench) -> None:
    sent = 0
    event = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 50_000}}]}).encode() + b"\n\n"
    total = 1000  # 50 MB, of which only what the buffers on the way hold may leave the target

    async def flood(call: Call) -> None:
        nonlocal sent
        call.begin_stream()
        for _ in range(total):
            call.chunk(event)
            await call.drained()
            sent += 1
            call.upstream.watch.notify()
        call.chunk(b"data: [DONE]\n\n")
        call.end_stream()
        call.hang_up()

    engine = await table.serve(flood)
    caller = await table.caller(limit=1 << 14)
    caller.send(ask(stream=True))
    connection = None
    await engine.watch.until(lambda: bool(engine.calls))
    connection = next(iter(table.gateway._connections.live))
    await engine.watch.until(lambda: connection.paused)
    transport = connection._transport
    assert transport is not None
    assert sent < total
    heard = 0
    while piece := await caller.piece() if heard else (await caller.head()) and await caller.piece():
        heard += len(piece)
        assert transport.get_write_buffer_size() < 4 << 20
    assert heard >= total * len(event)
    assert sent == total


async def test_slow_caller_leaves_the_backend_connection_usable(table: Bench) -> None:
    """The stream ends while the caller is paused: the connection goes back to the pool, and must be read from again."""
    event = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 60_000}}]}).encode() + b"\n\n"

    async def burst(call: Call) -> None:
        if call.json["stream"]:
            call.begin_stream()
            for _ in range(400):
                call.chunk(event)
                if table.gateway.live and any(c.paused for c in table.gateway._connections.live):
                    break
                await call.drained()
            call.chunk(b"data: [DONE]\n\n")
            call.end_stream()
        else:
            call.answer({"fine": True})

    upstream = await table.pool(burst)
    slow = await table.caller(limit=1 << 12)
    slow.send(ask(stream=True))
    await upstream.watch.until(lambda: bool(upstream.calls))
    assert (await slow.response()).body.endswith(b"[DONE]\n\n")
    for _ in range(3):
        assert (await table.call(ask())).json == {"fine": True}
    assert upstream.accepted == 1


@pytest.mark.usefixtures("quick")
async def test_caller_that_never_reads_is_disconnected(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.http.server.STALLED_WRITE_SECONDS", 0.05)
    event = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'

    async def flood(call: Call) -> None:
        call.begin_stream()
        while True:
            call.chunk(event)
            await call.drained()

    engine = await table.serve(flood)
    caller = await table.caller()
    deaf(caller)
    caller.send(ask(stream=True))
    await engine.watch.until(lambda: engine.accepted == 1)
    await engine.watch.until(lambda: engine.open == 0)
    await table.idle()


@pytest.mark.usefixtures("quick")
async def test_responses_do_not_pile_up_for_a_caller_that_never_reads(
    table: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.web.http.server.STALLED_WRITE_SECONDS", 0.05)
    monkeypatch.setattr("meshllm.web.http.server.LINGER_SECONDS", 0.05)
    caller = await table.caller()
    deaf(caller)
    biggest = 0
    with contextlib.suppress(ConnectionError):
        while not caller.writer.transport.is_closing():
            caller.send(request("GET", "/metrics") * 4)
            await caller.writer.drain()
            await asyncio.sleep(0)
            for connection in table.gateway._connections.live:
                transport = connection._transport
                biggest = max(biggest, transport.get_write_buffer_size() if transport else 0)
    assert biggest < 1 << 20
    await table.idle()


@pytest.mark.usefixtures("quick")
async def test_unread_last_response_does_not_keep_the_connection(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.http.server.STALLED_WRITE_SECONDS", 0.05)

    async def big(call: Call) -> None:
        call.answer(b'"' + b"x" * (16 << 20) + b'"')

    await table.serve(big)
    caller = await table.caller()
    deaf(caller)
    caller.send(request("POST", "/v1/completions", {"model": "m"}, {"Connection": "close"}))
    await table.gateway.watch.until(lambda: bool(table.gateway.outcomes))
    await table.idle()
