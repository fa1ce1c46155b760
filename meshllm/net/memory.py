"""Links within one process, for tests and simulations: `base.Transport` without sockets, on a network that can be cut.

Everything above the datagrams is the real code (handshake, links, streams) and passes the same tests as QUIC. In place
of TLS the listener's identity is read directly. A cut link loses and delivers nothing; after IDLE_SECONDS both ends
lose it, as with QUIC.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import cast

from meshllm.core.records import PeerAddress
from meshllm.errors import PortTaken
from meshllm.net.base import IDLE_SECONDS, Clock
from meshllm.net.connection_protocol import CONTROL, StreamConnection, StreamConnectionUser
from meshllm.net.handshake import Credentials
from meshllm.net.identity import Identity
from meshllm.net.node_link import NodeLink
from meshllm.net.node_transport import NodeTransport
from meshllm.net.quic.flow_control import FIRST_CREDIT_BYTES
from meshllm.net.quic.happy_eyeballs import Attempt, PendingDial

PORT = 4433


class MemoryNetwork:
    """The listeners by address, and the pairs of addresses that are cut."""

    def __init__(self) -> None:
        self.listening: dict[PeerAddress, MemoryTransport] = {}
        self._hosts = count(1)
        self._cuts: set[frozenset[PeerAddress]] = set()
        self._connections: set[MemoryConnection] = set()

    def address(self) -> PeerAddress:
        """A free address."""
        number = next(self._hosts)
        return PeerAddress(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", PORT)

    def cut(self, one: PeerAddress, other: PeerAddress) -> None:
        """Stop delivery between the two."""
        self._cuts.add(frozenset((one, other)))
        for connection in tuple(self._connections):
            connection.cut_or_healed()

    def heal(self, one: PeerAddress, other: PeerAddress) -> None:
        """Resume delivery between the two, including what waits."""
        self._cuts.discard(frozenset((one, other)))
        for connection in tuple(self._connections):
            connection.cut_or_healed()

    def is_cut(self, one: PeerAddress, other: PeerAddress) -> bool:
        """Whether delivery between the two is stopped."""
        return frozenset((one, other)) in self._cuts

    def join(self, connection: MemoryConnection) -> None:
        """Add one end of a connection."""
        self._connections.add(connection)

    def leave(self, connection: MemoryConnection) -> None:
        """Remove one end of a connection."""
        self._connections.discard(connection)


class MemoryTransport(NodeTransport):
    """A node at `address` of `network` (None: a free one)."""

    def __init__(
        self,
        identity: Identity,
        credentials: Callable[[], Credentials],
        network: MemoryNetwork,
        *,
        address: PeerAddress | None = None,
        max_clients: int | None = None,
        wall_clock: Callable[[], float] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(identity, credentials, max_clients=max_clients, wall_clock=wall_clock, clock=clock)
        self.network = network
        self.address = address or network.address()

    async def _listen(self) -> int:
        if self.address in self.network.listening:
            raise PortTaken(f"{self.address} is taken.")
        self.network.listening[self.address] = self
        return self.address.port

    async def _stop_listening(self) -> None:
        self.network.listening.pop(self.address, None)

    def attempt(self, address: PeerAddress, dial: PendingDial) -> Attempt:
        return MemoryConnection.dial_to(self.network, self.address, address, dial)

    def _attach(self, attempt: Attempt, make: Callable[[StreamConnection], NodeLink]) -> NodeLink:
        connection = cast(MemoryConnection, attempt)
        link = make(connection)
        connection.attach(link)
        return link


@dataclass(slots=True)
class Outgoing:
    """The sending side of a stream. `limit`: the peer's window; `under_way`: bytes sent and not delivered."""

    queue: deque[bytes] = field(default_factory=deque)
    queued: int = 0
    sent: int = 0
    under_way: int = 0
    limit: int = FIRST_CREDIT_BYTES
    end: bool = False
    over: bool = False


@dataclass(slots=True)
class Incoming:
    """The receiving side of a stream: bytes received, and the window given to the peer."""

    received: int = 0
    limit: int = FIRST_CREDIT_BYTES


class MemoryConnection:
    """`StreamConnection` and `Attempt`: one end of a connection; `peer` is the other."""

    def __init__(self, network: MemoryNetwork, here: PeerAddress, there: PeerAddress, *, dialled: bool) -> None:
        self.peer: MemoryConnection | None = None
        self._network = network
        self._here, self._there = here, there
        self._dialled = dialled
        self._loop = asyncio.get_running_loop()
        self._dial: PendingDial | None = None
        self._user: StreamConnectionUser | None = None
        self._pipe: deque[Callable[[MemoryConnection], None]] = deque()
        self._soon: asyncio.Handle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._out: dict[int, Outgoing] = {}
        self._in: dict[int, Incoming] = {}
        self._streams_allowed = False
        self._over = False

    @classmethod
    def dial_to(
        cls, network: MemoryNetwork, here: PeerAddress, there: PeerAddress, dial: PendingDial
    ) -> MemoryConnection:
        """A connection being dialled."""
        connection = cls(network, here, there, dialled=True)
        connection._dial = dial
        connection._soon = connection._loop.call_soon(connection._connect)
        return connection

    # -- connection_protocol.StreamConnection

    @property
    def dialled(self) -> bool:
        return self._dialled

    @property
    def address(self) -> PeerAddress:
        return self._there

    @property
    def rtt(self) -> float:
        return 0.0

    def send(self, stream: int, data: bytes | memoryview, end: bool = False) -> None:
        out = self._out.setdefault(stream, Outgoing())
        if self._over or out.over or out.end:
            return
        if data:
            out.queue.append(bytes(data))
            out.queued += len(data)
        out.end = end
        self._flush(stream, out)

    def unacknowledged(self, stream: int) -> int:
        out = self._out.get(stream)
        return out.queued + out.under_way if out is not None else 0

    def grant(self, stream: int, limit: int) -> None:
        incoming = self._in.setdefault(stream, Incoming())
        incoming.limit = max(incoming.limit, limit)
        self._carry(lambda peer: peer._granted(stream, limit))

    def reset(self, stream: int, code: int) -> None:
        out = self._out.setdefault(stream, Outgoing())
        if not out.over:
            out.over = True
            out.queue.clear()
            out.queued = 0
            self._carry(lambda peer: peer._was_reset(stream, code))

    def stop(self, stream: int, code: int) -> None:
        self._carry(lambda peer: peer._was_stopped(stream, code))

    def allow_streams(self) -> None:
        self._streams_allowed = True

    def close(self, reason: str) -> None:
        if self._over:
            return
        peer = self.peer
        self._end()
        if peer is not None and not self._network.is_cut(self._here, self._there):
            self._loop.call_soon(peer._lose, reason)

    # -- happy_eyeballs.Attempt

    def drop(self) -> None:
        self._dial = None
        self.close("not needed")

    def attach(self, user: StreamConnectionUser) -> None:
        """Give `user` the events from now on."""
        self._user = user
        self._network.join(self)

    def cut_or_healed(self) -> None:
        """The network was cut or healed."""
        cut = self._network.is_cut(self._here, self._there)
        if cut and self._idle is None:
            self._idle = self._loop.call_later(IDLE_SECONDS, self._lose, "Idle timeout")
        elif not cut and self._idle is not None:
            self._idle.cancel()
            self._idle = None
            self._deliver_soon()

    # -- internals

    def _connect(self) -> None:
        self._soon = None
        dial = self._dial
        listener = self._network.listening.get(self._there)
        if dial is None or listener is None or self._network.is_cut(self._here, self._there):
            return  # no answer: the dial's deadline ends it
        if not dial.matches(listener.identity.node):
            self._dial = None
            self._end()
            dial.failed(self, "another node answers there", wrong_node=True)
            return
        self.peer = MemoryConnection(self._network, self._there, self._here, dialled=False)
        self.peer.peer = self
        self.peer.attach(listener.accept(self.peer))
        self._dial = None
        dial.ready(self, listener.identity.node)

    def _carry(self, what: Callable[[MemoryConnection], None]) -> None:
        if not self._over:
            self._pipe.append(what)
            self._deliver_soon()

    def _deliver_soon(self) -> None:
        if self._soon is None and self._pipe and not self._over:
            self._soon = self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._soon = None
        if self._network.is_cut(self._here, self._there):
            return
        for _ in range(len(self._pipe)):
            peer = self.peer
            if self._over or peer is None or peer._over:
                return
            self._pipe.popleft()(peer)
        self._deliver_soon()
        if self._user is not None and not self._over:
            self._user.acknowledged()

    def _flush(self, stream: int, out: Outgoing) -> None:
        while out.queue and (window := out.limit - out.sent) > 0:
            data = out.queue.popleft()
            if len(data) > window:
                out.queue.appendleft(data[window:])
                data = data[:window]
            out.queued -= len(data)
            out.sent += len(data)
            out.under_way += len(data)
            self._carry(self._data_for(stream, data, out.end and not out.queue))
            out.over = out.end and not out.queue
        if out.end and not out.queue and not out.over:
            out.over = True
            self._carry(self._data_for(stream, b"", True))

    def _data_for(self, stream: int, data: bytes, end: bool) -> Callable[[MemoryConnection], None]:
        def arrive(peer: MemoryConnection) -> None:
            out = self._out.get(stream)
            if out is not None:
                out.under_way -= len(data)
                if out.over and not out.under_way:
                    del self._out[stream]
            peer._arrived(stream, data, end)

        return arrive

    def _arrived(self, stream: int, data: bytes, end: bool) -> None:
        user = self._user
        if user is None:
            return
        if stream != CONTROL and not self._streams_allowed and bool(stream & 1) == self._dialled:
            self._violated("Too many streams open")
            return
        incoming = self._in.setdefault(stream, Incoming())
        incoming.received += len(data)
        if incoming.received > incoming.limit:
            self._violated("Over stream data limit")
            return
        if end:
            del self._in[stream]
        user.data(stream, data, end)

    def _violated(self, reason: str) -> None:
        """The peer broke a limit: both ends lose the connection."""
        user = self._user
        self.close(reason)
        if user is not None:
            user.lost(reason)

    def _granted(self, stream: int, limit: int) -> None:
        out = self._out.get(stream)
        if out is not None and limit > out.limit:
            out.limit = limit
            self._flush(stream, out)

    def _was_reset(self, stream: int, code: int) -> None:
        self._in.pop(stream, None)
        if self._user is not None:
            self._user.was_reset(stream, code)

    def _was_stopped(self, stream: int, code: int) -> None:
        if self._user is not None:
            self._user.was_stopped(stream)
        if stream in self._out:
            self.reset(stream, code)

    def _lose(self, reason: str) -> None:
        if self._over:
            return
        user, dial = self._user, self._dial
        self._end()
        self._dial = None
        if user is not None:
            user.lost(reason)
        if dial is not None:
            dial.failed(self, reason)

    def _end(self) -> None:
        self._over = True
        self._network.leave(self)
        for handle in (self._soon, self._idle):
            if handle is not None:
                handle.cancel()
        self._soon = self._idle = None
        self._pipe.clear()
        self._out.clear()
