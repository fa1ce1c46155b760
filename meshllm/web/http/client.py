"""HTTP/1.1 client: pooled connections to engine processes (Unix socket), backends (TCP, TLS) and peers (tunnels).

Invariants: a connection serves one listener at a time and reports exactly one end to it: `upstream_end` or
`upstream_lost`. An engine's connection is not reused after a stream, because llama-server closes it unannounced; other
connections are reused only while fresh. A reused connection that breaks before the first byte of a response is reported
as `stale`: the request may be sent again on a new connection.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from meshllm.core.routing.routes import ENGINE, PEER, Target

# llama-server's cpp-httplib closes an idle connection after 5 s, other servers after 5 s to 75 s.
IDLE_SECONDS = 3.0
# A peer's gateway is our own program, which closes after 90 s (`server.IDLE_SECONDS`).
PEER_IDLE_SECONDS = 60.0
MAX_IDLE = 64
CONNECT_SECONDS = 10.0
MAX_HEAD_BYTES = 64 << 10
# What a chunked response may send beside its body without a break (chunk extensions, trailers), in bytes.
MAX_FRAMING_BYTES = 64 << 10


class PeerConnector(Protocol):
    """Opens connections to the gateways of peers."""

    async def connect(self, peer: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        """Open a stream to the HTTP tunnel of `peer` (node id in hexadecimal), with the protocol that `factory` makes.

        Returns that protocol, connected. Raises OSError if the peer cannot be reached.
        """


class ResponseListener(Protocol):
    """Receives one response: head, data any number of times, then end or lost (lost may come at any time).

    The last data comes with the end in one call, so that it can be forwarded in one write.
    """

    def upstream_head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        """The final status (never 1xx) and headers (lower-case names)."""

    def upstream_alive(self) -> None:
        """An interim response (1xx): the target is working. Must not end the request."""

    def upstream_data(self, data: bytes) -> None:
        """More of the body, de-chunked."""

    def upstream_end(self, data: bytes) -> None:
        """The response is complete with `data`, the last of its body; the connection is back in its pool."""

    def upstream_lost(self, reason: str, *, stale: bool) -> None:
        """The connection ended before the response was complete."""

    def upstream_excessive(self, reason: str) -> None:
        """The response exceeded a limit of its framing and was cut: another attempt would cost as much."""


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """The address of a target: a Unix socket, or host and port with or without TLS; and the path before `/v1`."""

    unix: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    authority: str = "localhost"
    prefix: str = ""

    @staticmethod
    def of(target: Target) -> UpstreamAddress:
        """The address of `target`; a backend's URL has been checked before."""
        if target.kind is ENGINE:
            return UpstreamAddress(unix=target.address)
        if target.kind is PEER:
            return UpstreamAddress()
        parts = urlsplit(target.address)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        authority = f"[{host}]" if ":" in host else host
        authority += f":{parts.port}" if parts.port else ""
        return UpstreamAddress("", host, parts.port or (443 if tls else 80), tls, authority, parts.path.rstrip("/"))


@functools.cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


class UpstreamConnection(asyncio.Protocol):
    """One connection to a target."""

    def __init__(self, pool: UpstreamPool) -> None:
        self.pool = pool
        self._transport: asyncio.Transport | None = None
        self._listener: ResponseListener | None = None
        self._body: list[bytes] = []
        self.on_body = self._body.append  # set before the parser, which looks up its callbacks once; all in C
        self._parser = httptools.HttpResponseParser(self)
        self._uses = 0
        self._paused = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._answered = False
        self._head_done = False
        self._head_told = False
        self._head_bytes = 0
        self._framing_bytes = 0
        self._complete = False
        self._status = 0
        self._interim = False
        self._until_close = False
        self._reusable = True

    def send(self, request: bytes, listener: ResponseListener) -> None:
        """Send a whole request; `listener` receives the response."""
        assert self._transport is not None
        self._begin()
        self._listener = listener
        self._uses += 1
        self._transport.write(request)

    @property
    def open(self) -> bool:
        """Whether a request could still be sent, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def pause(self) -> None:
        """Stop reading: the caller is slower than the target (backpressure)."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._paused = True

    def resume(self) -> None:
        """Resume reading."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._paused = False

    def drop(self) -> None:
        """Cancel the request: close the connection, which also stops the engine's work."""
        self._listener = None
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop has classes of its own

    def data_received(self, data: bytes) -> None:
        if self._listener is None:
            self.drop()  # data without a request: the connection is unusable
            return
        self._answered = True
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # Deliver the valid part of the response first.
            self._reusable = False
            self._deliver()
            self._lose(f"it sent a malformed HTTP response: {error}")
            return
        if self._body:
            self._framing_bytes = 0
        elif self._head_done:
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_FRAMING_BYTES and not self._complete:
                self._cut(f"its chunk extensions or trailers are longer than {MAX_FRAMING_BYTES} bytes")
                return
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._lose(f"its response head is longer than {MAX_HEAD_BYTES} bytes")
            return
        self._deliver()

    def _deliver(self) -> None:
        if self._head_done and not self._head_told:
            self._head_told = True
            content_type = self._headers.get(b"content-type", b"").decode("latin-1")
            assert self._listener is not None
            self._listener.upstream_head(self._status, content_type, self._headers)
        body = b"".join(self._body)
        self._body.clear()
        # The call may have ended the request and removed the listener.
        if self._listener is not None:
            if self._complete:
                self._finish(body)
            elif body:
                self._listener.upstream_data(body)

    def _finish(self, body: bytes) -> None:
        listener, self._listener = self._listener, None
        if self._reusable and not self._until_close:
            if self._paused:
                self.resume()
            self.pool.give_back(self)
        else:
            self.drop()
        assert listener is not None
        listener.upstream_end(body)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.pool.forget(self)
        if self._listener is None:
            return
        if exc is None and self._until_close and self._head_told:
            self._complete = True
            self._finish(b"")
        else:
            self._lose(
                f"the connection was lost: {exc}"
                if exc
                else "it closed the connection before the response was complete"
            )

    def _lose(self, reason: str) -> None:
        listener, self._listener = self._listener, None
        self.drop()
        if listener is not None:
            listener.upstream_lost(reason, stale=self._uses > 1 and not self._answered)

    def _cut(self, reason: str) -> None:
        """Close: the response exceeds a limit. What the parser gathers of a field is bounded by this alone."""
        listener, self._listener = self._listener, None
        self.drop()
        if listener is not None:
            listener.upstream_excessive(reason)

    # -- llhttp

    def on_message_begin(self) -> None:
        if self._complete:
            raise httptools.HttpParserError("a response without a request")
        if self._interim:
            self._interim = False
            self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # else a trailer: ignored
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status < 100:
            raise httptools.HttpParserError(
                f"status {self._status}"
            )  # llhttp lets an interim response have a body here
        if self._status < 200:
            self._interim = True
            if self._listener is not None:
                self._listener.upstream_alive()
            return
        self._head_done = True
        headers = self._headers
        streamed = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        self._reusable = not (streamed and self.pool.closes_after_stream)
        self._until_close = b"content-length" not in headers and b"transfer-encoding" not in headers

    def on_message_complete(self) -> None:
        if not self._interim:
            self._complete = True
            # should_keep_alive() is only valid inside this callback.
            self._reusable = self._reusable and self._parser.should_keep_alive()


class UpstreamPool:
    """The pooled connections to one target. A peer has one pool for all of its models."""

    def __init__(self, target: Target, loop: asyncio.AbstractEventLoop, peers: PeerConnector | None = None) -> None:
        self.target = target
        self._peers = peers
        self.address = UpstreamAddress.of(target)
        self.closes_after_stream = target.kind is ENGINE
        self._loop = loop
        self._idle: deque[UpstreamConnection] = deque()
        self._closed = False

    def take(self) -> UpstreamConnection | None:
        """An idle connection that is open and fresh, or None: then `connect`."""
        fresh = self._loop.time() - (PEER_IDLE_SECONDS if self.target.kind is PEER else IDLE_SECONDS)
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since >= fresh:
                return connection
            connection.drop()
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises OSError (TimeoutError included) if the target cannot be reached."""
        address = self.address
        async with asyncio.timeout(CONNECT_SECONDS):
            if self.target.kind is PEER:
                connection = await self._connect_peer()
            elif address.unix:
                _, connection = await self._loop.create_unix_connection(lambda: UpstreamConnection(self), address.unix)
            else:
                context = _tls_context() if address.tls else None
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self), address.host, address.port, ssl=context
                )
        return connection

    async def _connect_peer(self) -> UpstreamConnection:
        if self._peers is None:
            raise ConnectionError("this node is not in a mesh")
        made = await self._peers.connect(self.target.address, lambda: UpstreamConnection(self))
        if not isinstance(made, UpstreamConnection) or not made.open:
            raise ConnectionError("the peer closed the connection at once")
        return made

    def give_back(self, connection: UpstreamConnection) -> None:
        """Return a connection whose response is complete: it may be reused."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            connection.drop()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """Remove a closed connection."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close all idle connections; connections in use close with their responses."""
        self._closed = True
        while self._idle:
            self._idle.pop().drop()
