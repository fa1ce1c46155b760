"""Chunk extensions and trailers are bounded, of callers, of peers and of targets, in whatever pieces they come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from web_rig import Call, Caller, ask, bench, node_id, town

from meshllm.web.http.access_control import PEER_VERDICT
from meshllm.web.http.client import MAX_FRAMING_BYTES, UpstreamConnection
from meshllm.web.http.parser import MAX_HEAD_BYTES, BodyBudget, RequestReader, RequestRejected

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
# What follows the last chunk, or stands between two, without end.
ENDLESS: dict[str, Callable[[], Iterator[bytes]]] = {
    "one long trailer": lambda: _forever(b"2\r\n{}\r\n0\r\nX: ", b"x" * 1000),
    "one long name": lambda: _forever(b"2\r\n{}\r\n0\r\n", b"x" * 1000),
    "many trailers": lambda: _forever(b"2\r\n{}\r\n0\r\n", b"X: " + b"y" * 90 + b"\r\n"),
    "short trailers": lambda: _forever(b"2\r\n{}\r\n0\r\n", b"a:\r\n" * 250),
    "one chunk extension": lambda: _forever(b"2\r\n{}\r\n1;", b"x" * 1000),
    "extensions of small chunks": lambda: _forever(b"", b"1;" + b"x" * 1000 + b"\r\n{\r\n"),
    "zeros of a chunk's length": lambda: _forever(b"2\r\n{}\r\n", b"0" * 1000),
}


def _forever(first: bytes, more: bytes) -> Iterator[bytes]:
    yield first
    while True:
        yield more


def read_until_refused(pieces: Iterator[bytes], most: int) -> int:
    """Bytes that a reader took of `pieces` before it refused."""
    reader, taken = RequestReader(lambda _: (PEER_VERDICT, BodyBudget())), 0
    reader.feed(HEAD)
    for piece in pieces:
        taken += len(piece)
        assert taken <= most
        try:
            reader.feed(piece)
        except RequestRejected:
            break
    return taken


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("size", [0, 100, 256 << 10])
def test_caller_is_cut_after_a_bounded_number_of_bytes(name: str, size: int) -> None:
    pieces = ENDLESS[name]()
    if size:
        pieces = _pieces(pieces, size)
    read_until_refused(pieces, 3 * MAX_HEAD_BYTES + size + (256 << 10))


def _pieces(data: Iterator[bytes], size: int) -> Iterator[bytes]:
    kept = b""
    for piece in data:
        kept += piece
        while len(kept) >= size:
            yield kept[:size]
            kept = kept[size:]


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=20),
    chunks=st.lists(st.integers(1, 500), min_size=1, max_size=30),
    extension=st.integers(0, 15),
    trailers=st.integers(0, 300),
)
def test_sound_request_with_trailers_is_read_however_it_is_cut(
    cuts: list[int], chunks: list[int], extension: int, trailers: int
) -> None:
    body = b"".join(b"x" * size for size in chunks)
    whole = HEAD + b"".join(b"%x;%b\r\n%b\r\n" % (n, b"e" * (extension + 1), b"x" * n) for n in chunks)
    whole += b"0\r\n" + b"Trailer: " + b"t" * 50 + b"\r\n" + b"X: y\r\n" * trailers + b"\r\n"
    budget = BodyBudget()
    reader = RequestReader(lambda _: (PEER_VERDICT, budget))
    data, at = whole * 2, 0
    while data:
        reader.feed(data[: cuts[at % len(cuts)]])
        data, at = data[cuts[at % len(cuts)] :], at + 1
    assert [request.body for request in reader.queue] == [body, body]
    assert all(b"trailer" not in request.headers for request in reader.queue)
    reader.drop_all()
    assert budget.held == 0


@pytest.mark.parametrize("seed", range(4))
def test_mixed_framing_never_exceeds_its_bound(seed: int) -> None:
    """Whatever mix of chunks, extensions and trailers: what is read is in proportion to the body."""
    rng = random.Random(seed)

    def mixed() -> Iterator[bytes]:
        while True:
            size = rng.choice((1, 1, 2, 50))
            yield b"%x;%b\r\n%b\r\n" % (size, b"e" * rng.randrange(3000), b"x" * size)

    read_until_refused(mixed(), 4 << 20)


async def test_endless_trailer_of_a_caller_is_refused_over_a_socket(folder: Path) -> None:
    async with bench(folder) as table:
        caller = await table.caller()
        caller.send(HEAD + b"2\r\n{}\r\n0\r\nX: " + b"x" * (1 << 20))
        response = await caller.response()
        assert (response.status, response.headers["connection"]) == (413, "close")
        caller.abort()
        await table.idle()
        assert table.gateway.body_bytes == 0


async def test_endless_trailer_of_a_peer_is_refused(folder: Path) -> None:
    async with town(folder, 2) as place:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        await place.roads.connect(node_id(0).hex(), node_id(1).hex(), lambda: protocol)
        writer = asyncio.StreamWriter(protocol._transport, protocol, reader, loop)  # type: ignore[attr-defined]
        caller = Caller(reader, writer)
        caller.send(HEAD + b"2\r\n{}\r\n0\r\nX: " + b"x" * (256 << 10))
        assert (await caller.response()).status == 413
        assert place.benches[1].gateway.body_bytes == 0
        await caller.close()


# -- targets


class Listener:
    """Records the one end of a response."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def upstream_head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        """The head."""

    def upstream_alive(self) -> None:
        """An interim response."""

    def upstream_data(self, data: bytes) -> None:
        """More of the body."""

    def upstream_end(self, data: bytes) -> None:
        """The end."""
        self.ends.append("end")

    def upstream_lost(self, reason: str, *, stale: bool) -> None:
        """The connection ended."""
        self.ends.append("lost")

    def upstream_excessive(self, reason: str) -> None:
        """The response was cut."""
        self.ends.append("excessive")


def upstream() -> tuple[UpstreamConnection, Listener]:
    transport: Any = SimpleNamespace(write=lambda data: None, abort=lambda: None, is_closing=lambda: False)
    pool: Any = SimpleNamespace(closes_after_stream=False, give_back=lambda it: None, forget=lambda it: None)
    connection, listener = UpstreamConnection(pool), Listener()
    connection.connection_made(transport)
    connection.send(b"POST / HTTP/1.1\r\n\r\n", listener)
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    return connection, listener


@pytest.mark.parametrize("start", [b"0\r\nX: ", b"0\r\n", b"1;"])
@pytest.mark.parametrize("size", [100, 64 << 10])
def test_endless_trailer_of_a_target_is_cut(start: bytes, size: int) -> None:
    connection, listener = upstream()
    connection.data_received(start)
    sent = 0
    while not listener.ends:
        connection.data_received(b"x" * size)
        sent += size
        assert sent <= MAX_FRAMING_BYTES + 2 * size
    assert listener.ends == ["excessive"]


def test_trailers_of_a_target_do_not_change_its_headers() -> None:
    connection, listener = upstream()
    heads: list[dict[bytes, bytes]] = []
    listener.upstream_head = lambda status, kind, headers: heads.append(headers)  # type: ignore[method-assign]
    connection.data_received(b"0\r\nContent-Type: text/event-stream\r\nX: y\r\n\r\n")
    assert listener.ends == ["end"]
    assert b"x" not in connection._headers


@pytest.mark.parametrize("stream", [False, True])
async def test_target_with_an_endless_trailer_is_asked_once(folder: Path, stream: bool) -> None:
    async def endless(call: Call) -> None:
        call.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        call.writer.write(b"2\r\n{}\r\n0\r\nX: ")
        while not call.writer.is_closing():
            call.writer.write(b"x" * 10_000)
            await asyncio.sleep(0)

    async with bench(folder) as table:
        engine = await table.serve(endless)
        response = await table.call(ask(stream=stream))
        assert (response.status, response.json["error"]["code"]) == (502, "upstream_lost")
        assert "trailers" in response.json["error"]["message"]
        assert len(engine.calls) == 1
