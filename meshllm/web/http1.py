"""The server side of HTTP/1.1, as a raw asyncio protocol over llhttp (httptools): what the gateway's speed rests on.

Law: nothing a caller sends is trusted. Head, body, pipelined requests and time are bounded here, and whatever breaks a
bound is answered in `on_refused`'s words and then hung up on. A connection carries one exchange at a time; it keeps
reading meanwhile, because a caller that goes away must be noticed at once.

Why not aiohttp, as elsewhere: measured on two cores, a pass-through on aiohttp adds 0.344 ms to the first byte and
answers 6,000 requests/s at 32 connections; a raw protocol adds 0.146 ms and answers 47,000.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import httptools

# A head is some hundred bytes from an SDK, some thousand with a browser's cookies.
MAX_HEAD_BYTES = 64 << 10
# Images in a chat are carried in the body, as base64; agents' contexts are far smaller.
MAX_BODY_BYTES = 64 << 20
# All bodies being received or worked on, over all connections.
MAX_BODIES_BYTES = 512 << 20
MAX_PIPELINED = 8
MAX_CONNECTIONS = 2048
# Seconds: for a head from its first byte; between two reads of a body; between two requests on a connection; and for a
# caller that has stopped reading what it asked for.
HEAD_SECONDS = 30.0
BODY_SECONDS = 30.0
IDLE_SECONDS = 90.0
STALLED_WRITE_SECONDS = 120.0

REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Request:
    """A request that has arrived whole. Header names are lower case; a repeated header has its values joined by ','."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    http_1_0: bool

    def header(self, name: bytes) -> str:
        """A header's value as text, or the empty string."""
        return self.headers.get(name, b"").decode("latin-1")


class Exchange(Protocol):
    """What is at work on a connection's current request."""

    def caller_gone(self) -> None:
        """The caller hung up: stop the work. Nothing can be written any more."""

    def caller_paused(self, paused: bool) -> None:
        """The caller reads slower than we write (True), or has caught up (False)."""

    def tick(self, now: float) -> None:
        """About a second has passed."""


class Application(Protocol):
    """What answers requests. Both calls must lead to exactly one `finish` of the connection, now or later."""

    def on_request(self, connection: Connection, request: Request) -> Exchange | None:
        """Answer `request`; returns who works on it, or None if it has been answered already."""

    def on_refused(self, connection: Connection, path: str, status: int, message: str) -> None:
        """Answer, in the shape that `path` calls for, something that never became a request."""

    def date(self) -> bytes:
        """The Date header's value."""


class ConnectionSet:
    """All connections of one server, and what they hold in memory together."""

    def __init__(self) -> None:
        self.live: set[Connection] = set()
        self.body_bytes = 0
        self.empty = asyncio.Event()
        self.empty.set()

    def add(self, connection: Connection) -> None:
        """A connection was made."""
        self.live.add(connection)
        self.empty.clear()

    def remove(self, connection: Connection) -> None:
        """A connection has closed."""
        self.live.discard(connection)
        if not self.live:
            self.empty.set()

    def sweep(self, now: float) -> None:
        """Enforce the time limits. Called about once a second while there are connections."""
        for connection in list(self.live):
            connection.sweep(now)


class _Refused(Exception):
    """Raised inside parser callbacks to leave the parser; `status` 0: hang up without a word."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Connection(asyncio.Protocol):
    """One caller's connection."""

    def __init__(self, application: Application, connections: ConnectionSet, loop: asyncio.AbstractEventLoop) -> None:
        self._application = application
        self._connections = connections
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self.peer = ""
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._exchange: Exchange | None = None
        self._busy = False
        self._closing = False
        self._keep_alive = True
        self._http_1_0 = False
        self._held = b""
        self._paused_since: float | None = None
        self.deadline: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._raw_bytes = 0
        self._in_head = True

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self._connections.add(self)
        self.deadline = self._loop.time() + HEAD_SECONDS
        if len(self._connections.live) > MAX_CONNECTIONS:
            self._refuse(503, "Too many connections; try again in a moment.")

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._raw_bytes += len(data)
        try:
            if self._raw_bytes > 2 * MAX_BODY_BYTES + MAX_HEAD_BYTES:
                raise _Refused(413, "The request is too large.")
            if self._in_head and self._raw_bytes > MAX_HEAD_BYTES:
                data = self._feed_head(data)
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__
            if not isinstance(refused, _Refused):
                raise
            self._refuse(refused.status, refused.message)
        except _Refused as refused:
            self._refuse(refused.status, refused.message)
        except httptools.HttpParserError as error:
            self._refuse(400, f"This is not HTTP as it should be: {error}.")
        else:
            if not self._busy and not self._closing:
                self._arm(self._loop.time())
                if self._queue:
                    self._next()

    def _feed_head(self, data: bytes) -> bytes:
        """Feed no more than a head may have; what is left may be fed too, for the head was complete by then."""
        room = max(0, MAX_HEAD_BYTES - (self._raw_bytes - len(data)))
        self._feed(data[:room])
        if self._in_head and not self._queue:
            raise _Refused(431, f"The request's head is longer than {MAX_HEAD_BYTES} bytes.")
        return data[room:]

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # A wish for another protocol (h2c, WebSocket) that we may ignore: the request itself is complete.
                data = data[int(upgrade.args[0]) if upgrade.args else len(data) :]
                self._parser = httptools.HttpRequestParser(self)

    def eof_received(self) -> bool:
        return False  # a caller that will send no more has gone: HTTP clients do not half-close

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._transport = None
        self._connections.remove(self)
        self._connections.body_bytes -= self._body_bytes + sum(len(r.body) for r in self._queue)
        self._body_bytes = 0
        self._queue.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.caller_gone()

    def pause_writing(self) -> None:
        self._paused_since = self._loop.time()
        if self._exchange is not None:
            self._exchange.caller_paused(True)

    def resume_writing(self) -> None:
        self._paused_since = None
        if self._exchange is not None:
            self._exchange.caller_paused(False)

    # -- llhttp

    def on_message_begin(self) -> None:
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nothing we know of is sent in one
        name = name.lower()
        if (known := self._headers.get(name)) is not None:
            if name in (b"host", b"content-type", b"origin", b"authorization", b"x-api-key"):
                raise _Refused(400, f"The header {name.decode('latin-1')!r} is sent twice.")
            value = known + b"," + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise _Refused(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if self._headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise _Refused(415, "Compressed request bodies are not understood; send the JSON as it is.")
        expectation = self._headers.get(b"expect", b"").lower()
        if expectation == b"100-continue" and not self._busy and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._connections.body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            raise _Refused(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if self._connections.body_bytes > MAX_BODIES_BYTES:
            raise _Refused(503, "Too much is being received at once; try again in a moment.")
        self._body.append(body)

    def on_message_complete(self) -> None:
        if len(self._queue) >= MAX_PIPELINED:
            raise _Refused(0, "too many pipelined requests")
        path = self._url.partition(b"?")[0]
        self._queue.append(
            Request(
                self._parser.get_method().decode("latin-1"),
                path.decode("latin-1"),
                self._headers,
                b"".join(self._body) if len(self._body) != 1 else self._body[0],
                self._parser.should_keep_alive(),
                self._parser.get_http_version() != "1.1",
            )
        )
        self._reset()

    # -- taking requests, one at a time

    def _next(self) -> None:
        request = self._queue.popleft()
        self._connections.body_bytes -= len(request.body)
        self._busy = True
        self.deadline = None
        self._keep_alive = request.keep_alive
        self._http_1_0 = request.http_1_0
        exchange = self._application.on_request(self, request)
        if self._busy and self._transport is not None:
            self._exchange = exchange

    def _arm(self, now: float) -> None:
        self.deadline = now + (HEAD_SECONDS if self._in_head and self._raw_bytes else IDLE_SECONDS)
        if not self._in_head:
            self.deadline = now + BODY_SECONDS

    def sweep(self, now: float) -> None:
        """Enforce the time limits on this connection."""
        if self._exchange is not None:
            if self._paused_since is not None and now - self._paused_since > STALLED_WRITE_SECONDS:
                self.abort()
                return
            self._exchange.tick(now)
        elif self.deadline is not None and now >= self.deadline and not self._closing:
            if self._raw_bytes:
                self._refuse(408, "The request did not arrive in time.")
            else:
                self.close()

    def _refuse(self, status: int, message: str) -> None:
        self._closing = True
        self._keep_alive = False
        self._connections.body_bytes -= self._body_bytes
        self._body_bytes = 0
        if self._busy or not status:
            # In the middle of an answer there is no place for another one.
            self.abort()
            return
        self._busy = True
        path = self._url.partition(b"?")[0].decode("latin-1")
        self._application.on_refused(self, path, status, message)

    # -- answering

    @property
    def open(self) -> bool:
        """Whether what is written may still reach the caller."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def paused(self) -> bool:
        """Whether the caller reads slower than we write."""
        return self._paused_since is not None

    def send(self, status: int, content_type: str, body: bytes, headers: str = "", *, head_only: bool = False) -> None:
        """A whole answer, and `finish`. `headers`: more header lines, each with its CRLF."""
        head = self._head(status, content_type, f"content-length: {len(body)}\r\n{headers}")
        if self._transport is not None:
            self._transport.write(head if head_only else head + body)
        self.finish()

    def start_stream(self, status: int, content_type: str, headers: str = "") -> None:
        """The head of an answer whose length nobody knows yet. It leaves with the first data: each write is a call."""
        if self._http_1_0:
            self._keep_alive = False
            framing = ""
        else:
            framing = "transfer-encoding: chunked\r\n"
        self._held = self._head(status, content_type, framing + headers)

    def send_data(self, data: bytes) -> None:
        """More of a started stream."""
        if data:
            self._write(data if self._http_1_0 else b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self, data: bytes = b"") -> None:
        """The last of a started stream, and `finish`."""
        if self._http_1_0:
            self._write(data)
        elif data:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        else:
            self._write(b"0\r\n\r\n")
        self.finish()

    def _write(self, data: bytes) -> None:
        held, self._held = self._held, b""
        if self._transport is not None:
            self._transport.write(held + data if held else data)

    def _head(self, status: int, content_type: str, more: str) -> bytes:
        alive = "" if self._keep_alive else "connection: close\r\n"
        return (
            (
                f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\nserver: mesh-llm\r\n"
                f"content-type: {content_type}\r\n{alive}{more}date: "
            ).encode("latin-1")
            + self._application.date()
            + b"\r\n\r\n"
        )

    def finish(self) -> None:
        """The answer is complete: on to the next request, or hang up."""
        self._busy = False
        self._exchange = None
        if self._transport is None:
            return
        if not self._keep_alive or self._closing:
            self.close()
            return
        self._arm(self._loop.time())
        if self._queue:
            # Not from here: the exchange that just finished is still on the stack.
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._queue and not self._busy and not self._closing:
            self._next()

    def retire(self) -> None:
        """Hang up as soon as the answer in progress, if any, is complete."""
        self._keep_alive = False
        self._closing = True
        if not self._busy:
            self.close()

    def close(self) -> None:
        """Hang up once everything written has been sent."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Hang up now."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
