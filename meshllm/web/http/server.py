"""HTTP/1.1 server as a raw asyncio protocol.

Invariants: a connection processes one request at a time, and none while its caller does not read. It reads on
meanwhile, so that a caller that goes away is noticed at once. Times are bounded here, sizes in `parser`; a request
beyond a bound gets `on_rejected`'s response, after the responses already owed, and the connection is closed.

Why not aiohttp: measured on two cores (`scripts/bench gateway`), a bare pass-through on aiohttp adds 0.38 ms to the
first byte and answers 3,400 requests/s at 32 connections; this server with the whole gateway adds 0.15 ms and answers
9,700.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol, cast

from meshllm.web.http.access_control import CallerKind, Verdict
from meshllm.web.http.connections import ConnectionSet
from meshllm.web.http.parser import BodyBudget, Request, RequestReader, RequestRejected
from meshllm.web.http.request_id import request_id_of

# Seconds: for a head from its first byte; between two reads of a body; between two requests on a connection; and for a
# caller that has stopped reading its response.
HEAD_SECONDS = 30.0
BODY_SECONDS = 30.0
IDLE_SECONDS = 90.0
STALLED_WRITE_SECONDS = 120.0
# How long a connection stays open after a rejection while the caller is still sending: closed at once, it would be
# reset by TCP, and the caller would never read the error.
LINGER_SECONDS = 5.0

REASONS = {status.value: status.phrase for status in HTTPStatus}
NO_CONTENT = HTTPStatus.NO_CONTENT.value  # the member itself is looked up by Python code


class ActiveRequest(Protocol):
    """The processing of a connection's current request."""

    def caller_gone(self) -> None:
        """The caller closed the connection: stop the work. Nothing can be written any more."""

    def caller_paused(self, paused: bool) -> None:
        """The caller reads more slowly than we write (True), or has caught up (False)."""

    def tick(self, now: float) -> None:
        """Called about once a second."""

    def stopping(self) -> None:
        """The server is stopping: end now, with an error."""


class Application(Protocol):
    """Answers requests. Each call must lead to exactly one `finish` of the connection, now or later."""

    def judge(self, connection: Connection, headers: dict[bytes, bytes]) -> Verdict:
        """The verdict on the caller by a complete head. The body of a refused caller is not read."""

    def on_request(self, connection: Connection, request: Request) -> ActiveRequest | None:
        """Answer `request`; returns its processing, or None if it has been answered already."""

    def on_rejected(
        self, connection: Connection, path: str, rejected: RequestRejected, headers: dict[bytes, bytes]
    ) -> None:
        """Send an error, in the shape of the API at `path`, for bytes that never became a request.

        `headers`: those that have come.
        """

    def date(self) -> bytes:
        """The Date header's value."""


class CallerConnection(Protocol):
    """What a request needs of its caller's connection. The methods are those of `Connection`."""

    @property
    def request_id(self) -> str:
        """That of the request in progress."""

    @property
    def busy(self) -> bool:
        """Whether a response is in progress."""

    @property
    def paused(self) -> bool:
        """Whether the caller reads more slowly than we write."""

    def send(self, status: int, content_type: str, body: bytes, headers: str = "") -> None:
        """Send a whole response."""

    def send_interim(self) -> None:
        """Say that a response which is not a stream is being made."""

    def start_stream(self, status: int, content_type: str, headers: str = "") -> None:
        """Begin a response of unknown length."""

    def send_data(self, data: bytes) -> None:
        """Send more of a started stream."""

    def end_stream(self, data: bytes = b"") -> None:
        """Send the last of a started stream."""

    def abort(self) -> None:
        """Close now."""


class Connection(asyncio.Protocol):
    """One caller's connection. `peer` is the caller's address ("" if unknown), `at` the local address it reached.

    `kind` is the class of its caller by the last complete head. `request_id` is that of the request in progress.
    """

    def __init__(
        self, application: Application, connections: ConnectionSet[Connection], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._application = application
        self._connections = connections
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self.peer = self.at = self.request_id = ""
        self.kind = CallerKind.KEYLESS
        self.neighbours: dict[Connection, None] = {}
        self._bodies = connections.bodies
        self._reader = RequestReader(self._judge)
        self._active: ActiveRequest | None = None
        self._busy = False
        self._closing = False
        self._rejection: RequestRejected | None = None
        self._lingering = False
        self._keep_alive = True
        self._http_1_0 = False
        self._head_only = False
        self._active_body_bytes = 0
        self._active_budget = connections.bodies
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
        self.deadline = self._loop.time() + HEAD_SECONDS
        if not self._connections.add(self):
            self._reject(_too_many())

    def data_received(self, data: bytes) -> None:
        if self._closing or self._rejection is not None:
            return
        try:
            self._reader.feed(data)
        except RequestRejected as rejected:
            self._reject(rejected)
        else:
            if not self._busy:
                if not self._reader.queue:
                    self._arm(self._loop.time())
                self._resume()

    def eof_received(self) -> bool:
        return False  # HTTP clients do not half-close: the caller has gone

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._transport = None
        active, self._active = self._active, None
        if active is not None:
            active.caller_gone()
        self._connections.remove(self)
        self._reader.drop_all()
        self._release_body()

    def pause_writing(self) -> None:
        self._paused_since = self._loop.time()
        if self._active is not None:
            self._active.caller_paused(True)

    def resume_writing(self) -> None:
        self._paused_since = None
        if self._active is not None:
            self._active.caller_paused(False)
        else:
            self._resume()

    # -- requests, one at a time

    def _next(self) -> None:
        request = self._reader.queue.popleft()
        self._active_body_bytes = len(request.body)
        self._active_budget = request.budget
        self._busy = True
        self._timed = False
        self.deadline = None
        self._keep_alive = request.keep_alive
        self._http_1_0 = request.http_1_0
        self._head_only = request.method == "HEAD"
        self.request_id = request_id_of(request.headers)
        try:
            active = self._application.on_request(self, request)
        except BaseException:
            self.abort()  # a defect of ours: do not leave the caller waiting
            raise
        if self._busy and self._transport is not None:
            self._active = active

    def _release_body(self) -> None:
        self._active_budget.add(-self._active_body_bytes)
        self._active_body_bytes = 0

    def _resume(self) -> None:
        """Process what has arrived, unless a response is in progress."""
        if self._busy or self._closing or self._paused_since is not None:
            return
        if self._reader.queue:
            self._next()
        elif self._rejection is not None:
            self._conclude(self._rejection)
        elif self._reader.expects and self._transport is not None:
            # Only now: it must not be written in the middle of another response.
            self._reader.expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _arm(self, now: float) -> None:
        if not self._reader.begun:
            self.deadline = now + IDLE_SECONDS
        elif not self._reader.in_head:
            self.deadline = now + BODY_SECONDS
        elif not self._timed:
            # Once: a head that trickles in gets no more time than any other.
            self._timed = True
            self.deadline = now + HEAD_SECONDS

    def sweep(self, now: float) -> None:
        """Enforce the time limits on this connection."""
        if self._paused_since is not None and now - self._paused_since > STALLED_WRITE_SECONDS:
            self.abort()
        elif self._active is not None:
            self._active.tick(now)
        elif self.deadline is not None and now >= self.deadline and not self._reader.queue:
            if self._closing:
                self.abort()
            elif self._reader.begun:
                self._reject(RequestRejected(408, "The request was not received in time (timeout)."))
            else:
                self.close()

    def _reject(self, rejected: RequestRejected) -> None:
        """Read no more; responses already owed are sent first. Status 0: close without a response."""
        self._rejection = rejected
        self._reader.drop_body()
        self._resume()

    def _conclude(self, rejected: RequestRejected) -> None:
        self._keep_alive = False
        self._head_only = False
        if rejected.status:
            self._busy = True
            self.request_id = request_id_of(self._reader.headers)
            self._application.on_rejected(self, self._reader.path, rejected, self._reader.headers)
        else:
            self.close()

    def _judge(self, reader: RequestReader) -> tuple[Verdict, BodyBudget]:
        """Judge the caller by a complete head. Raises RequestRejected before a body of a refused caller is read."""
        verdict = self._application.judge(self, reader.headers)
        if verdict.kind is not self.kind:
            if not self._connections.reclassify(self, verdict.kind):
                raise _too_many()
            self._bodies = self._connections.bodies_of(self)
        refusal = verdict.refusal
        if refusal is not None and reader.has_body:
            raise RequestRejected(refusal.status, refusal.message, refusal.code, refused=True)
        return verdict, self._bodies

    @property
    def idle(self) -> bool:
        """Whether no request is in progress, and no body is being received."""
        return self._closing or not (self._busy or self._reader.queue or not self._reader.in_head)

    # -- responses

    @property
    def open(self) -> bool:
        """Whether bytes written may still reach the caller."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def paused(self) -> bool:
        """Whether the caller reads more slowly than we write."""
        return self._paused_since is not None

    def send(self, status: int, content_type: str, body: bytes, headers: str = "") -> None:
        """Send a whole response (no body to HEAD), and `finish`. `headers`: lines, each with its CRLF."""
        length = f"content-length: {len(body)}\r\n" if status != NO_CONTENT else ""
        head = self._head(status, content_type, length + headers)
        if self._transport is not None:
            self._transport.write(head if self._head_only else head + body)
        self.finish()

    def send_interim(self) -> None:
        """Send "102 Processing": a response that is not a stream is being made. Our own gateways understand it."""
        if self._transport is not None and not self._http_1_0 and not self._head_only:
            self._transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")

    def start_stream(self, status: int, content_type: str, headers: str = "") -> None:
        """Begin a response of unknown length. The head is sent with the first data: each write is a system call."""
        if self._http_1_0:
            self._keep_alive = False
            framing = ""
        else:
            framing = "transfer-encoding: chunked\r\n"
        self._held = self._head(status, content_type, framing + headers)

    def send_data(self, data: bytes) -> None:
        """Send more of a started stream."""
        if data:
            self._write(data if self._http_1_0 else b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self, data: bytes = b"") -> None:
        """Send the last of a started stream, and `finish`."""
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
        head = f"{_status_line(status)}{self.request_id}\r\ncontent-type: {content_type}\r\n{alive}{more}date: ".encode(
            "latin-1"
        )
        return b"%b%b\r\n\r\n" % (head, self._application.date())

    def finish(self) -> None:
        """The response is complete: go on to the next request, or close."""
        self._busy = False
        self._active = None
        self._release_body()
        if self._transport is None:
            return
        if not self._keep_alive or self._closing:
            self.close()
            return
        self._arm(self._loop.time())
        self._connections.used(self)
        if self._reader.queue or self._rejection is not None or self._reader.expects:
            # Not from here: the request that just finished is still on the stack.
            self._loop.call_soon(self._resume)

    @property
    def busy(self) -> bool:
        """Whether a response is in progress."""
        return self._busy

    def retire(self) -> None:
        """Close as soon as the response in progress, if any, is complete."""
        self._keep_alive = False
        self._closing = True
        if not self._busy:
            self.close()

    def stop(self) -> None:
        """End the response in progress with an error, and close."""
        self.retire()
        if self._active is not None:
            self._active.stopping()

    def close(self) -> None:
        """Close once all that was written has been sent."""
        self._closing = True
        if self._transport is None:
            return
        if self._rejection is not None and not self._lingering:
            self._lingering = True
            self.deadline = self._loop.time() + LINGER_SECONDS
            if self._transport.can_write_eof():  # TLS cannot
                self._transport.write_eof()
        else:
            self.deadline = self._loop.time() + STALLED_WRITE_SECONDS
            self._transport.close()

    def abort(self) -> None:
        """Close now (TCP reset)."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()


@lru_cache(maxsize=64)
def _status_line(status: int) -> str:
    """The beginning of a response, up to the request id."""
    return f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\nserver: mesh-llm\r\nx-request-id: "


def _too_many() -> RequestRejected:
    return RequestRejected(503, "Too many connections. Retry in a moment.")
