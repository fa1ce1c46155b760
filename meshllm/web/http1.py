"""The server side of HTTP/1.1, as a raw asyncio protocol over llhttp (httptools): what the gateway's speed rests on.

Law: nothing a caller sends is trusted. Head, body, pipelined requests and time are bounded here, and whatever breaks a
bound is answered in `on_refused`'s words, after the answers that are owed already, and then hung up on. A connection
carries one exchange at a time, and none while its caller does not read; it keeps reading meanwhile, because a caller
that goes away must be noticed at once.

Why not aiohttp, as elsewhere: measured on two cores, a pass-through on aiohttp adds 0.344 ms to the first byte and
answers 6,000 requests/s at 32 connections; a raw protocol adds 0.146 ms and answers 47,000.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import httptools

log = logging.getLogger(__name__)

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
# A caller that is refused while it is still sending is heard out for so long: hung up on at once, it would be told by
# its own machine that the connection broke, and never read why.
LINGER_SECONDS = 5.0

BODY_HEADERS = (b"content-length", b"transfer-encoding")
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

    def stopping(self) -> None:
        """The server closes: end now, with an error."""


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
            try:
                connection.sweep(now)
            except Exception:
                # A defect of ours, in one exchange: the others still have their time limits.
                log.exception("a connection failed")
                connection.abort()


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
        self._refusal: tuple[int, str] | None = None
        self._lingering = False
        self._keep_alive = True
        self._http_1_0 = False
        self._head_only = False
        self._at_work_bytes = 0
        self._heads = 0
        self._without_wish = b""
        self._held = b""
        self._paused_since: float | None = None
        self.deadline: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._version = ""
        self._headers: dict[bytes, bytes] = {}
        # Not a list of pieces: a body in chunks of two bytes would take some twenty times its size.
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._raw_bytes = 0
        self._in_head = True
        self._begun = False
        self._timed = False
        self._expects = False

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
        if self._closing or self._refusal is not None:
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
            if not self._busy:
                self._arm(self._loop.time())
                self._resume()

    def _feed_head(self, data: bytes) -> bytes:
        """Feed, as long as this is a head, in pieces in each of which one must end; returns what is left."""
        room = max(0, MAX_HEAD_BYTES - (self._raw_bytes - len(data)))
        while self._in_head and data:
            heads = self._heads
            self._feed(data[:room])
            if self._in_head and self._heads == heads:
                raise _Refused(431, f"The request's head is longer than {MAX_HEAD_BYTES} bytes.")
            data, room = data[room:], MAX_HEAD_BYTES
        return data

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # A wish for another protocol (h2c, WebSocket), which we ignore.
                data = data[int(upgrade.args[0]) if upgrade.args else len(data) :]
                self._parser = httptools.HttpRequestParser(self)
                if again := self._without_wish:
                    self._without_wish = b""
                    self._parser.feed_data(again)

    def eof_received(self) -> bool:
        return False  # a caller that will send no more has gone: HTTP clients do not half-close

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._transport = None
        self._connections.remove(self)
        self._connections.body_bytes -= self._at_work_bytes + self._body_bytes + sum(len(r.body) for r in self._queue)
        self._at_work_bytes = self._body_bytes = 0
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
        else:
            self._resume()

    # -- llhttp

    def on_message_begin(self) -> None:
        self._reset()
        self._begun = True

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
        self._heads += 1
        self._version = self._parser.get_http_version()
        if self._version not in ("1.1", "1.0"):
            raise _Refused(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        length = self._headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise _Refused(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if self._headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise _Refused(415, "Compressed request bodies are not understood; send the JSON as it is.")
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._expects = self._version == "1.1"
            if not self._busy and not self._queue:
                self._say_continue()

    def _say_continue(self) -> None:
        """Let the body come. Only between two answers, of which this is not one."""
        if self._expects and self._transport is not None:
            self._expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._connections.body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            raise _Refused(413, f"The body is larger than {MAX_BODY_BYTES >> 20} MiB.")
        if self._connections.body_bytes > MAX_BODIES_BYTES:
            raise _Refused(503, "Too much is being received at once; try again in a moment.")
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        has_wish = self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"
        if has_wish and not self._headers.keys().isdisjoint(BODY_HEADERS):
            # The parser has skipped the body, taking it for the other protocol; Java's client sends such requests.
            self._without_wish = self._head_without_wish()
            return
        if len(self._queue) >= MAX_PIPELINED:
            raise _Refused(0, "too many pipelined requests")
        path = self._url.partition(b"?")[0]
        self._queue.append(
            Request(
                self._parser.get_method().decode("latin-1"),
                path.decode("latin-1"),
                self._headers,
                bytes(self._body),
                self._parser.should_keep_alive(),
                self._version != "1.1",
            )
        )
        self._reset()

    def _head_without_wish(self) -> bytes:
        lines = [b"%b: %b\r\n" % pair for pair in self._headers.items() if pair[0] not in (b"upgrade", b"expect")]
        version = self._version.encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self._parser.get_method(), self._url, version, b"".join(lines))

    # -- taking requests, one at a time

    def _next(self) -> None:
        request = self._queue.popleft()
        self._at_work_bytes = len(request.body)
        self._busy = True
        self._timed = False
        self.deadline = None
        self._keep_alive = request.keep_alive
        self._http_1_0 = request.http_1_0
        self._head_only = request.method == "HEAD"
        try:
            exchange = self._application.on_request(self, request)
        except BaseException:
            self.abort()  # a defect of ours; the caller is not left waiting for its end
            raise
        if self._busy and self._transport is not None:
            self._exchange = exchange

    def _resume(self) -> None:
        """Go on with what has arrived, if nothing is in the way."""
        if self._busy or self._closing or self._paused_since is not None:
            return
        if self._queue:
            self._next()
        elif self._refusal is not None:
            self._conclude(*self._refusal)
        elif not self._in_head:
            self._say_continue()

    def _arm(self, now: float) -> None:
        if not self._begun:
            self.deadline = now + IDLE_SECONDS
        elif not self._in_head:
            self.deadline = now + BODY_SECONDS
        elif not self._timed:
            # Once: a head that trickles in has no more time than any other.
            self._timed = True
            self.deadline = now + HEAD_SECONDS

    def sweep(self, now: float) -> None:
        """Enforce the time limits on this connection."""
        if self._paused_since is not None and now - self._paused_since > STALLED_WRITE_SECONDS:
            self.abort()
        elif self._exchange is not None:
            self._exchange.tick(now)
        elif self.deadline is not None and now >= self.deadline and not self._queue:
            if self._closing:
                self.abort()
            elif self._begun:
                self._refuse(408, "The request did not arrive in time.")
            else:
                self.close()

    def _refuse(self, status: int, message: str) -> None:
        """Take nothing more in; what is owed is answered first. `status` 0: hang up without a word."""
        self._refusal = (status, message)
        self._connections.body_bytes -= self._body_bytes
        self._body, self._body_bytes = b"", 0
        self._resume()

    def _conclude(self, status: int, message: str) -> None:
        self._keep_alive = False
        self._head_only = False
        if status:
            self._busy = True
            path = self._url.partition(b"?")[0].decode("latin-1")
            self._application.on_refused(self, path, status, message)
        else:
            self.close()

    # -- answering

    @property
    def open(self) -> bool:
        """Whether what is written may still reach the caller."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def paused(self) -> bool:
        """Whether the caller reads slower than we write."""
        return self._paused_since is not None

    def send(self, status: int, content_type: str, body: bytes, headers: str = "") -> None:
        """A whole answer (without its body, if HEAD was asked), and `finish`. `headers`: lines, each with its CRLF."""
        length = f"content-length: {len(body)}\r\n" if status != HTTPStatus.NO_CONTENT else ""
        head = self._head(status, content_type, length + headers)
        if self._transport is not None:
            self._transport.write(head if self._head_only else head + body)
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
        alive = (
            ("connection: keep-alive\r\n" if self._http_1_0 else "") if self._keep_alive else "connection: close\r\n"
        )
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
        self._connections.body_bytes -= self._at_work_bytes
        self._at_work_bytes = 0
        if self._transport is None:
            return
        if not self._keep_alive or self._closing:
            self.close()
            return
        self._arm(self._loop.time())
        if self._queue or self._refusal is not None or self._expects:
            # Not from here: the exchange that just finished is still on the stack.
            self._loop.call_soon(self._resume)

    def retire(self) -> None:
        """Hang up as soon as the answer in progress, if any, is complete."""
        self._keep_alive = False
        self._closing = True
        if not self._busy:
            self.close()

    def stop(self) -> None:
        """End the answer in progress with an error, and hang up."""
        self.retire()
        if self._exchange is not None:
            self._exchange.stopping()

    def close(self) -> None:
        """Hang up once everything written has been sent."""
        self._closing = True
        if self._transport is None:
            return
        if self._refusal is not None and not self._lingering:
            self._lingering = True
            self.deadline = self._loop.time() + LINGER_SECONDS
            self._transport.write_eof()
        else:
            self.deadline = self._loop.time() + STALLED_WRITE_SECONDS
            self._transport.close()

    def abort(self) -> None:
        """Hang up now."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
