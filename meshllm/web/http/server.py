"""The server side of HTTP/1.1, as a raw asyncio protocol: what the gateway's speed rests on.

Law: a connection carries one exchange at a time, and none while its caller does not read; it keeps reading meanwhile,
because a caller that goes away must be noticed at once. Time is bounded here, size in `requests`; whatever breaks a
bound is answered in `on_refused`'s words, after the answers that are owed already, and then hung up on.

Why not aiohttp, as elsewhere: measured on two cores (`scripts/bench gateway`), a bare pass-through on aiohttp adds
0.38 ms to the first byte and answers 3,400 requests/s at 32 connections; this, with all that it does besides, 0.15 ms
and 9,700.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast

from meshllm.web.http.parser import BodyBudget, Refused, Request, RequestReader

log = logging.getLogger(__name__)

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

REASONS = {status.value: status.phrase for status in HTTPStatus}


class ActiveRequest(Protocol):
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

    def on_request(self, connection: Connection, request: Request) -> ActiveRequest | None:
        """Answer `request`; returns who works on it, or None if it has been answered already."""

    def on_refused(self, connection: Connection, path: str, status: int, message: str) -> None:
        """Answer, in the shape that `path` calls for, something that never became a request."""

    def date(self) -> bytes:
        """The Date header's value."""


class ConnectionSet:
    """All connections of one server, or of one peer, and what they hold in memory together."""

    def __init__(self, wake: Callable[[], None], bodies: BodyBudget | None = None, most: int | None = None) -> None:
        """`wake` is called for each new connection: from then on `sweep` is needed. `most`: of connections."""
        self._wake = wake
        self._most = most
        self.live: set[Connection] = set()
        self.bodies = bodies if bodies is not None else BodyBudget()
        self.empty = asyncio.Event()
        self.empty.set()

    def add(self, connection: Connection) -> None:
        """A connection was made."""
        self.live.add(connection)
        self.empty.clear()
        self._wake()

    @property
    def full(self) -> bool:
        """Whether there are more than there may be."""
        return len(self.live) > (MAX_CONNECTIONS if self._most is None else self._most)

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


class Connection(asyncio.Protocol):
    """One caller's connection."""

    def __init__(self, application: Application, connections: ConnectionSet, loop: asyncio.AbstractEventLoop) -> None:
        self._application = application
        self._connections = connections
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self.peer = self.at = ""
        self._reader = RequestReader(connections.bodies)
        self._exchange: ActiveRequest | None = None
        self._busy = False
        self._closing = False
        self._refusal: tuple[int, str] | None = None
        self._lingering = False
        self._keep_alive = True
        self._http_1_0 = False
        self._head_only = False
        self._at_work_bytes = 0
        self._timed = False
        self._held = b""
        self._paused_since: float | None = None
        self.deadline: float | None = None

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        at = transport.get_extra_info("sockname")
        self.at = at[0] if isinstance(at, tuple) else ""
        self._connections.add(self)
        self.deadline = self._loop.time() + HEAD_SECONDS
        if self._connections.full:
            self._refuse(503, "Too many connections; try again in a moment.")

    def data_received(self, data: bytes) -> None:
        if self._closing or self._refusal is not None:
            return
        try:
            self._reader.feed(data)
        except Refused as refused:
            self._refuse(refused.status, refused.message)
        else:
            if not self._busy:
                self._arm(self._loop.time())
                self._resume()

    def eof_received(self) -> bool:
        return False  # a caller that will send no more has gone: HTTP clients do not half-close

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._transport = None
        self._connections.remove(self)
        self._reader.drop_all()
        self._let_body_go()
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

    # -- taking requests, one at a time

    def _next(self) -> None:
        request = self._reader.queue.popleft()
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

    def _let_body_go(self) -> None:
        self._connections.bodies.add(-self._at_work_bytes)
        self._at_work_bytes = 0

    def _resume(self) -> None:
        """Go on with what has arrived, if nothing is in the way."""
        if self._busy or self._closing or self._paused_since is not None:
            return
        if self._reader.queue:
            self._next()
        elif self._refusal is not None:
            self._conclude(*self._refusal)
        elif self._reader.expects and self._transport is not None:
            # Let the body come: only now, because it must not stand in the middle of another answer.
            self._reader.expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _arm(self, now: float) -> None:
        if not self._reader.begun:
            self.deadline = now + IDLE_SECONDS
        elif not self._reader.in_head:
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
        elif self.deadline is not None and now >= self.deadline and not self._reader.queue:
            if self._closing:
                self.abort()
            elif self._reader.begun:
                self._refuse(408, "The request did not arrive in time.")
            else:
                self.close()

    def _refuse(self, status: int, message: str) -> None:
        """Take nothing more in; what is owed is answered first. `status` 0: hang up without a word."""
        self._refusal = (status, message)
        self._reader.drop_body()
        self._resume()

    def _conclude(self, status: int, message: str) -> None:
        self._keep_alive = False
        self._head_only = False
        if status:
            self._busy = True
            self._application.on_refused(self, self._reader.path, status, message)
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

    def send_interim(self) -> None:
        """A word that somebody is at work on an answer that is not a stream (102), for callers that know of it."""
        if self._transport is not None and not self._http_1_0 and not self._head_only:
            self._transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")

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
        self._let_body_go()
        if self._transport is None:
            return
        if not self._keep_alive or self._closing:
            self.close()
            return
        self._arm(self._loop.time())
        if self._reader.queue or self._refusal is not None or self._reader.expects:
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
            if self._transport.can_write_eof():  # TLS cannot
                self._transport.write_eof()
        else:
            self.deadline = self._loop.time() + STALLED_WRITE_SECONDS
            self._transport.close()

    def abort(self) -> None:
        """Hang up now."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
