"""One link on a connection: the hello, then messages and streams.

Invariants: before the hello has succeeded (`facts` are set), only hello frames are read, each at most MAX_HELLO_BYTES,
all within HANDSHAKE_SECONDS. Above MESSAGES_PER_SECOND a peer is read more slowly; an invalid frame closes the link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from meshllm.core.records import NodeId, PeerAddress, short
from meshllm.errors import BadMessage, LinkClosed, PeerRefused
from meshllm.net.base import MAX_MESSAGE_BYTES, Clock, LinkFacts, StreamKind
from meshllm.net.connection_protocol import CONTROL, StreamConnection
from meshllm.net.handshake import AcceptorHandshake, DiallerHandshake, Frames, HandshakeResult, frame
from meshllm.net.quic.streams import Stream, Streams
from meshllm.util.rate_limiter import TokenBucket
from meshllm.wire.mesh.hello import MAX_HELLO_BYTES

# Two round trips and a signature; enough for two lost packets.
HANDSHAKE_SECONDS = 5.0
# Time for a refused peer to read the refusal.
REFUSED_SECONDS = 1.0
# Queue for a slow peer; beyond it `send` drops the message and returns False.
MAX_QUEUED_BYTES = 1 << 20
# Far above the few messages a second of a correct node, and cheap to receive.
MESSAGES_PER_SECOND = 200.0
MESSAGES_AT_ONCE = 500.0
# The reason for closing a link is sent to the peer, which logs it.
MAX_REASON_CHARACTERS = 200


class LinkOwner(Protocol):
    """The owner of a link: its transport."""

    def may_prove(self, link: NodeLink) -> bool:
        """The dialled peer has answered; whether the link is still wanted before this node proves itself."""

    def established(self, link: NodeLink, result: HandshakeResult) -> None:
        """The handshake has succeeded."""

    def refused(self, link: NodeLink, error: PeerRefused) -> None:
        """The handshake with a dialled peer failed with a refusal of either side; the link closes."""

    def refused_peer(self, peer: NodeId | None, address: PeerAddress, code: str) -> None:
        """This node refuses a node that dialled it; `peer` is None unless it proved its id."""

    def gone(self, link: NodeLink, reason: str) -> None:
        """The link has ended, established or not. Called once."""

    def message(self, link: NodeLink, payload: bytes) -> None:
        """A control message."""

    def stream(self, link: NodeLink, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """The peer opened a stream."""


class NodeLink:
    """`base.Link`, and the user of its connection."""

    def __init__(
        self, connection: StreamConnection, owner: LinkOwner, loop: asyncio.AbstractEventLoop, clock: Clock
    ) -> None:
        self.connection = connection
        self.name = b""  # set once established; the same at both ends
        self.instance = b""
        self.dialled_peer: NodeId | None = None  # the dialled node
        self.closed: str | None = None
        self._facts: LinkFacts | None = None
        self._owner = owner
        self._loop = loop
        self._clock = clock
        self._began = clock()
        self._streams = Streams(connection, lambda kind: owner.stream(self, kind), loop)
        self._greeting: LinkGreeting | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # -- base.Link

    @property
    def facts(self) -> LinkFacts:
        if self._facts is None:
            raise LinkClosed("The link is not established.")
        return self._facts

    @property
    def established(self) -> bool:
        """Whether the handshake has succeeded."""
        return self._facts is not None

    @property
    def rtt(self) -> float:
        return self.connection.rtt

    @property
    def streams(self) -> int:
        return len(self._streams)

    def open(self, kind: StreamKind, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        if self.closed is not None or self._facts is None:
            raise LinkClosed(f"The link is closed: {self.closed or 'not established'}.")
        return self._streams.open(kind, protocol)

    def send(self, payload: bytes) -> bool:
        if len(payload) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(payload)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
        if self.closed is not None or self._facts is None:
            return False
        control = self._streams.open_streams[CONTROL]
        queued = control.get_write_buffer_size() + self.connection.unacknowledged(CONTROL)
        if queued + len(payload) > MAX_QUEUED_BYTES:
            return False
        control.write(frame(payload))
        return True

    def close(self, reason: str) -> None:
        if self.closed is None:
            self.connection.close(reason[:MAX_REASON_CHARACTERS])
            self.lost(reason)

    # -- the handshake

    def start_handshake(
        self, handshake: DiallerHandshake | AcceptorHandshake, seconds: float = HANDSHAKE_SECONDS
    ) -> None:
        """Start the handshake as dialler or acceptor."""
        self.dialled_peer = handshake.peer if isinstance(handshake, DiallerHandshake) else None
        self._greeting = LinkGreeting(self, handshake)
        self._deadline = self._loop.call_later(seconds, self.close, "the handshake timed out")
        self._streams.control(self._greeting)

    def still_wanted(self) -> bool:
        """Whether the dialled link is still wanted; closes it if not."""
        if self._owner.may_prove(self):
            return True
        self.close("another link to the same node was established first")
        return False

    def succeed(self, result: HandshakeResult, control: Stream, rest: bytes) -> None:
        """The handshake has succeeded. `rest`: bytes after it, which are messages."""
        self._cancel_deadline()
        self._facts = LinkFacts(
            peer=result.peer,
            role=result.role,
            mesh=result.mesh,
            address=self.connection.address,
            dialled=self.connection.dialled,
            rtt=self.connection.rtt or self._clock() - self._began,
            protocol=result.protocol,
            certificate=result.certificate,
            observed=result.observed,
            admitted=result.admitted,
        )
        self.name, self.instance = result.name, result.instance
        self._greeting = None
        self._streams.peer = result.peer
        self._streams.allow_streams()
        messages = Messages(control, self._message, self.close, self._loop, self._clock)
        control.set_protocol(messages)
        self._owner.established(self, result)
        if rest and self.closed is None:
            messages.data_received(rest)

    def fail(self, error: PeerRefused) -> None:
        """The peer refused, or is not the expected node."""
        self._owner.refused(self, error)
        self.close(error.message)

    def close_refused(self, handshake: AcceptorHandshake) -> None:
        """The peer is refused: read nothing more, and close after REFUSED_SECONDS."""
        assert handshake.refusal is not None
        self._owner.refused_peer(handshake.proved, self.connection.address, handshake.refusal.code)
        self._cancel_deadline()
        self._deadline = self._loop.call_later(REFUSED_SECONDS, self.close, "refused")

    # -- connection_protocol.StreamConnectionUser

    def data(self, stream: int, data: bytes, end: bool) -> None:
        self._streams.data(stream, data, end)

    def was_reset(self, stream: int, code: int) -> None:
        self._streams.was_reset(stream, code)

    def was_stopped(self, stream: int) -> None:
        self._streams.was_stopped(stream)

    def acknowledged(self) -> None:
        if self._streams.backlogged:
            self._streams.pump()

    def unread(self) -> int:
        """Bytes that no protocol has read."""
        return self._streams.unread

    def lost(self, reason: str) -> None:
        if self.closed is not None:
            return
        self.closed = reason
        self._cancel_deadline()
        self._streams.close(ConnectionResetError(f"The link to the peer has ended: {reason}."))
        self._owner.gone(self, reason)

    def _message(self, payload: bytes) -> None:
        self._owner.message(self, payload)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def __repr__(self) -> str:
        who = short(self._facts.peer) if self._facts else "stranger"
        state = f"closed: {self.closed}" if self.closed is not None else f"{self.streams} streams"
        return f"<NodeLink {who} {self.connection.address} {state}>"


class LinkGreeting(asyncio.Protocol):
    """The control stream during the handshake."""

    def __init__(self, link: NodeLink, handshake: DiallerHandshake | AcceptorHandshake) -> None:
        self._link = link
        self._handshake = handshake
        self._frames = Frames(MAX_HELLO_BYTES)
        self._transport: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(Stream, transport)
        if isinstance(self._handshake, DiallerHandshake):
            self._transport.write(frame(self._handshake.start()))

    def data_received(self, data: bytes) -> None:
        try:
            self._frames.feed(data)
            while self._link.closed is None and (payload := self._frames.take()) is not None:
                self._receive(cast(Stream, self._transport), payload)
                if self._handshake.result is not None or self._handshake.refusal is not None:
                    break
        except PeerRefused as error:
            self._link.fail(error)
            return
        except BadMessage as error:
            self._link.close(error.message)
            return
        if self._handshake.result is not None and self._link.closed is None:
            self._link.succeed(self._handshake.result, cast(Stream, self._transport), self._frames.rest())

    def eof_received(self) -> bool:
        if isinstance(self._handshake, DiallerHandshake) or self._handshake.refusal is None:
            self._link.close("the peer closed the stream during the handshake")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.close("the peer reset the handshake")

    def _receive(self, transport: Stream, payload: bytes) -> None:
        handshake = self._handshake
        answer = handshake.receive(payload)
        if isinstance(handshake, DiallerHandshake):
            if answer is not None and self._link.still_wanted():
                transport.write(frame(answer))
            return
        transport.write(frame(cast(bytes, answer)))
        if handshake.refusal is not None:
            transport.write_eof()
            transport.pause_reading()
            self._link.close_refused(handshake)


class Messages(asyncio.Protocol):
    """The control stream after the handshake."""

    def __init__(
        self,
        transport: Stream,
        receive: Callable[[bytes], None],
        close: Callable[[str], None],
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._receive = receive
        self._close = close
        self._loop = loop
        self._clock = clock
        self._frames = Frames(MAX_MESSAGE_BYTES)
        self._bucket = TokenBucket(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, clock())
        self._waiting: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        try:
            self._frames.feed(data)
            if self._waiting is None:
                self._take()
        except BadMessage as error:
            self._close(error.message)

    def eof_received(self) -> bool:
        self._close("the peer closed the control stream")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._close("the peer reset the control stream")

    def _take(self) -> None:
        while not self._transport.is_closing() and self._frames.ready():
            if not self._bucket.take(self._clock()):
                self._transport.pause_reading()
                self._waiting = self._loop.call_later(10 / MESSAGES_PER_SECOND, self._go_on)
                return
            payload = self._frames.take()
            if payload is not None:
                self._receive(payload)
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _go_on(self) -> None:
        self._waiting = None
        try:
            self._take()
        except BadMessage as error:
            self._close(error.message)
