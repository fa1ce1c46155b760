"""One link: the handshake, then messages and streams, over a carrier.

Law: until the handshake has succeeded (`facts` are there) nothing of the peer is read but handshake frames, each of
them bounded, all of them within HANDSHAKE_SECONDS. Afterwards a peer that sends messages faster than
MESSAGES_PER_SECOND is read more slowly; one that sends what is no frame loses the link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from meshllm.core.records import NodeId, short
from meshllm.errors import BadMessage, LinkClosed, PeerRefused
from meshllm.net.base import MAX_MESSAGE_BYTES, Clock, LinkFacts, StreamKind
from meshllm.net.connection_protocol import CONTROL, StreamConnection
from meshllm.net.handshake import AcceptorHandshake, DiallerHandshake, Frames, HandshakeResult, frame
from meshllm.net.quic.streams import Stream, Streams
from meshllm.util.rate_limiter import TokenBucket
from meshllm.wire.mesh.hello import MAX_HELLO_BYTES

# Two round trips and some arithmetic; with a lost packet or two still far below.
HANDSHAKE_SECONDS = 5.0
# How long a refused peer may take to read why.
REFUSED_SECONDS = 1.0
# Messages waiting for a peer that does not read; what goes over it is dropped (`send` gives False).
MAX_QUEUED_BYTES = 1 << 20
# Far above what honest nodes send each other (a few a second), and no burden for whoever receives them.
MESSAGES_PER_SECOND = 200.0
MESSAGES_AT_ONCE = 500.0
# A reason is told to the peer and logged by it.
MAX_REASON_CHARACTERS = 200


class LinkOwner(Protocol):
    """Who a link belongs to: the transport."""

    def proving(self, link: NodeLink) -> bool:
        """The dialled peer has answered, and this end is about to prove itself: whether the link is still wanted."""

    def established(self, link: NodeLink, finding: HandshakeResult) -> None:
        """The handshake has succeeded."""

    def refused(self, link: NodeLink, error: PeerRefused) -> None:
        """The dialled peer will not have us, or we not it. The link is closed."""

    def gone(self, link: NodeLink, reason: str) -> None:
        """It is over, established or not. Once."""

    def message(self, link: NodeLink, payload: bytes) -> None:
        """A control message."""

    def stream(self, link: NodeLink, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """The peer opens a stream."""


class NodeLink:
    """`base.Link`, and the carrier's user. `address` is where the peer was at the beginning."""

    def __init__(
        self, carrier: StreamConnection, owner: LinkOwner, loop: asyncio.AbstractEventLoop, clock: Clock
    ) -> None:
        self.carrier = carrier
        self.name = b""  # known to both ends once established
        self.instance = b""
        self.greeted: NodeId | None = None  # who was dialled
        self.closed: str | None = None
        self._facts: LinkFacts | None = None
        self._owner = owner
        self._loop = loop
        self._clock = clock
        self._began = clock()
        self._streams = Streams(carrier, lambda kind: owner.stream(self, kind), loop)
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
        """Whether the peer has proved who it is."""
        return self._facts is not None

    @property
    def rtt(self) -> float:
        return self.carrier.rtt

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
        queued = control.get_write_buffer_size() + self.carrier.unacknowledged(CONTROL)
        if queued + len(payload) > MAX_QUEUED_BYTES:
            return False
        control.write(frame(payload))
        return True

    def close(self, reason: str) -> None:
        if self.closed is None:
            self.carrier.close(reason[:MAX_REASON_CHARACTERS])
            self.lost(reason)

    # -- the handshake

    def begin(self, handshake: DiallerHandshake | AcceptorHandshake, seconds: float = HANDSHAKE_SECONDS) -> None:
        """Greet the peer, or wait to be greeted."""
        self.greeted = handshake.peer if isinstance(handshake, DiallerHandshake) else None
        self._greeting = LinkGreeting(self, handshake)
        self._deadline = self._loop.call_later(seconds, self.close, "the handshake took too long")
        self._streams.control(self._greeting)

    def wants_to_prove(self) -> bool:
        """Whether the dialled link is still wanted; if not, it is closed."""
        if self._owner.proving(self):
            return True
        self.close("another link to the same node has come first")
        return False

    def succeed(self, finding: HandshakeResult, control: Stream, rest: bytes) -> None:
        """The handshake has succeeded. What came behind it are messages already."""
        self._cancel_deadline()
        self._facts = LinkFacts(
            peer=finding.peer,
            role=finding.role,
            mesh=finding.mesh,
            address=self.carrier.address,
            dialled=self.carrier.dialled,
            rtt=self.carrier.rtt or self._clock() - self._began,
            protocol=finding.protocol,
            observed=finding.observed,
            secret=finding.secret,
        )
        self.name, self.instance = finding.name, finding.instance
        self._greeting = None
        self._streams.peer = finding.peer
        self._streams.trust()
        messages = Messages(control, self._message, self.close, self._loop, self._clock)
        control.set_protocol(messages)
        self._owner.established(self, finding)
        if rest and self.closed is None:
            messages.data_received(rest)

    def fail(self, error: PeerRefused) -> None:
        """The peer refused, or is not who it should be."""
        self._owner.refused(self, error)
        self.close(error.message)

    def linger(self) -> None:
        """The peer has been refused: leave it time to read why, and read nothing more."""
        self._cancel_deadline()
        self._deadline = self._loop.call_later(REFUSED_SECONDS, self.close, "refused")

    # -- the carrier's user

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
        """Bytes that wait for protocols that do not read."""
        return self._streams.unread

    def lost(self, reason: str) -> None:
        if self.closed is not None:
            return
        self.closed = reason
        self._cancel_deadline()
        self._streams.close(ConnectionResetError(f"The link to the peer is gone: {reason}."))
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
        return f"<NodeLink {who} {self.carrier.address} {state}>"


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
                if self._handshake.finding is not None or self._handshake.refused is not None:
                    break
        except PeerRefused as error:
            self._link.fail(error)
            return
        except BadMessage as error:
            self._link.close(error.message)
            return
        if self._handshake.finding is not None and self._link.closed is None:
            self._link.succeed(self._handshake.finding, cast(Stream, self._transport), self._frames.rest())

    def eof_received(self) -> bool:
        if isinstance(self._handshake, DiallerHandshake) or self._handshake.refused is None:
            self._link.close("the peer ended the handshake")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.close("the peer broke off the handshake")

    def _receive(self, transport: Stream, payload: bytes) -> None:
        handshake = self._handshake
        answer = handshake.receive(payload)
        if isinstance(handshake, DiallerHandshake):
            if answer is not None and self._link.wants_to_prove():
                transport.write(frame(answer))
            return
        transport.write(frame(cast(bytes, answer)))
        if handshake.refused is not None:
            transport.write_eof()
            transport.pause_reading()
            self._link.linger()


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
        self._close("the peer ended it")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._close("the peer broke it off")

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
