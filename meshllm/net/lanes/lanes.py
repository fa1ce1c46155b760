"""Lanes: direct TLS 1.3 connections over TCP to a linked peer, for bulk and for what waits for every token.

Law: a lane is opened with a one-time ticket fetched over the link, and nothing is sent on it before the other end has
shown the peer's own key; it lives no longer than the link. It is the loop's own transport: no byte is copied on the
way. Where TCP does not get through, nobody waits for it: the first caller for a moment, the next not at all, and
whether it has become possible is found out in the background.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from meshllm.core.records import NodeId, PeerAddress, short
from meshllm.errors import LinkClosed
from meshllm.net.base import Clock, Link, StreamKind
from meshllm.net.identity import Identity
from meshllm.net.lanes.dialler import LaneRequest, TicketRequest, hosts_to_try, reach
from meshllm.net.lanes.listener import LaneListener, Serve
from meshllm.tasks import Owner

# Fetched at once and kept ready, so that only the first lane of a burst costs a round trip over the link.
TICKETS_PER_REQUEST = 4
# TCP and TLS take two round trips; somebody who does not answer in this and 4 round trips is behind a filter.
REACH_SECONDS = 1.0
# A caller waits this and 4 round trips (ticket, TCP, TLS, welcome) before the tunnel goes over QUIC; those that come
# while that attempt still goes on do not wait.
OPEN_WAIT_SECONDS = 0.25
# Until TCP is tried again where it did not get through; and where it did, but the lane was refused.
BLOCKED_SECONDS = 60.0
REFUSED_SECONDS = 5.0
# Taken off a ticket's life: the acceptor looks at it only after the handshakes.
_TICKET_MARGIN_SECONDS = 2.0
# `struct tcp_info` of Linux (include/uapi/linux/tcp.h): bytes acknowledged and received at 120, delivery rate at 160.
_TCP_INFO_BYTES = 168


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """How lanes to a peer are doing. `proved`: one has got through; `blocked`: why none is tried now, or empty.

    `sent` and `received` are bytes on the wire over the lanes open now, `rate` the fastest of them in bytes/s as the
    kernel sees it; None where the system does not say.
    """

    open: int = 0
    proved: bool = False
    blocked: str = ""
    sent: int | None = None
    received: int | None = None
    rate: int | None = None


@dataclass(slots=True)
class _LanePath:
    """What is known of the way to one peer, as long as one link lives."""

    link: Link
    hosts: tuple[str, ...] = ()
    tickets: dict[StreamKind, deque[tuple[bytes, float]]] = field(default_factory=dict)
    port: int = 0
    asking: int = 0
    proved: bool = False
    probing: bool = False
    blocked: str = ""
    blocked_until: float = 0.0
    late: asyncio.Task[None] | None = None  # an attempt that a caller did not wait for to the end

    def obstacle(self) -> str:
        """Why a tunnel does not wait for a lane now; empty if it does."""
        slow = self.late is not None and not self.late.done()
        return self.blocked or ("TCP takes longer than a tunnel waits for it" if slow else "")


class _NoLane(Exception):
    """Why there is none this time, and for how long it is not worth trying (seconds)."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


class Lanes:
    """Opens lanes to peers, and accepts theirs."""

    def __init__(self, identity: Identity, *, clock: Clock = time.monotonic) -> None:
        self._client = identity.client_context()
        self._serve: Serve = lambda peer, kind, lane: None
        self._clock = clock
        self._listener = LaneListener(identity.server_context(), self._accepted, clock)
        self._owner = Owner("lanes")
        self._ways: dict[NodeId, _LanePath] = {}
        self._open: dict[NodeId, list[asyncio.Transport]] = {}

    def start(self, serve: Serve, port: int, host: str | None = None) -> int:
        """Listen on TCP `port` where it is free, else on any. Returns the port; 0: this node accepts no lanes.

        `serve` says what serves an accepted lane, given the peer, the kind and the lane; None refuses it.
        """
        self._serve = serve
        return self._listener.start(port, host)

    def ticket_handler(self, link: Link) -> asyncio.BaseProtocol:
        """What serves a LANE_TICKET stream that the peer has opened."""
        return self._listener.ticket_handler(link)

    async def open(
        self,
        link: Link,
        kind: StreamKind,
        factory: Callable[[], asyncio.BaseProtocol],
        addresses: Iterable[PeerAddress] = (),
    ) -> asyncio.BaseProtocol | None:
        """A lane to the link's peer with a protocol of `factory` on it, already connected; None: use a stream.

        Takes OPEN_WAIT_SECONDS and 4 round trips at most. `addresses`: where else the peer may be. Never raises for
        anything a peer or a network does.
        """
        way = self._way(link, addresses)
        if way.blocked and self._clock() >= way.blocked_until and not way.probing:
            way.probing = True
            self._owner.start(self._probe(way), f"probe {short(link.facts.peer)}")
        if way.obstacle():
            return None
        wish = LaneRequest(factory, lambda lane: self._granted(way, lane))
        attempt = self._owner.start(self._attempt(way, kind, wish), f"lane to {short(link.facts.peer)}")
        try:
            await asyncio.wait({attempt}, timeout=OPEN_WAIT_SECONDS + 4 * link.rtt)
        except asyncio.CancelledError:
            if wish.transport is not None:
                wish.transport.abort()
            raise
        finally:
            wish.wanted = False  # a late lane is not taken, but what it proves counts
        if not attempt.done():
            way.late = attempt
        return wish.protocol

    def count(self, peer: NodeId) -> int:
        """How many lanes to or from `peer` are open."""
        return len(self._living(peer))

    def facts(self, peer: NodeId) -> LaneFacts:
        """How lanes to `peer` are doing."""
        living, way = self._living(peer), self._ways.get(peer)
        figures = [found for lane in living if (found := _kernel_figures(lane)) is not None]
        sent, received, rates = zip(*figures, strict=True) if figures else ((), (), ())
        return LaneFacts(
            open=len(living),
            proved=bool(living) or (way is not None and way.proved),
            blocked=way.obstacle() if way is not None else "",
            sent=sum(sent) if figures else None,
            received=sum(received) if figures else None,
            rate=max(rates) if figures else None,
        )

    def forget(self, peer: NodeId) -> None:
        """The link to `peer` is gone: its lanes are cut off, its tickets are worth nothing."""
        self._ways.pop(peer, None)
        self._listener.forget(peer)
        for lane in self._open.pop(peer, ()):
            lane.abort()

    async def close(self) -> None:
        """Cut off every lane, and listen no more."""
        await self._owner.close()
        await self._listener.close()
        for peer in [*self._ways, *self._open]:
            self.forget(peer)
        await asyncio.sleep(0)  # an aborted socket is closed in the loop's next turn

    # -- what is known

    def _way(self, link: Link, addresses: Iterable[PeerAddress]) -> _LanePath:
        way = self._ways.get(link.facts.peer)
        if way is None or way.link is not link:
            way = self._ways[link.facts.peer] = _LanePath(link)
        way.hosts = hosts_to_try(link.facts.address, addresses)
        return way

    def _living(self, peer: NodeId) -> list[asyncio.Transport]:
        lanes = self._open.get(peer)
        if lanes is None:
            return []
        lanes[:] = [lane for lane in lanes if not lane.is_closing()]
        if not lanes:
            del self._open[peer]
        return lanes

    def _accepted(self, peer: NodeId, kind: StreamKind, lane: asyncio.Transport) -> asyncio.BaseProtocol | None:
        protocol = self._serve(peer, kind, lane)
        if protocol is not None:
            self._add(peer, lane)
        return protocol

    def _add(self, peer: NodeId, lane: asyncio.Transport) -> None:
        self._living(peer)
        self._open.setdefault(peer, []).append(lane)

    # -- opening

    def _granted(self, way: _LanePath, lane: asyncio.Transport) -> bool:
        """Whether a lane that is there may be used: not if its link went down meanwhile."""
        if self._ways.get(way.link.facts.peer) is not way:
            return False
        self._add(way.link.facts.peer, lane)
        return True

    async def _probe(self, way: _LanePath) -> None:
        """Whether TCP gets through by now. Nothing is opened."""
        try:
            await self._attempt(way, StreamKind.HTTP_TUNNEL, LaneRequest(None, lambda _: False))
        finally:
            way.probing = False

    async def _attempt(self, way: _LanePath, kind: StreamKind, wish: LaneRequest) -> None:
        """One try: ticket, TCP and TLS, ticket shown, welcome. What it shows is kept in `way`."""
        try:
            await self._try(way, kind, wish)
        except LinkClosed:
            return
        except _NoLane as none:
            way.blocked, way.blocked_until = none.reason, self._clock() + none.seconds
        else:
            way.proved, way.blocked = True, ""

    async def _try(self, way: _LanePath, kind: StreamKind, wish: LaneRequest) -> None:
        """Raises LinkClosed and _NoLane."""
        ticket, limit = await self._ticket(way, kind), REACH_SECONDS + 4 * way.link.rtt
        peer = way.link.facts.peer
        greeting = await reach(self._owner, self._client, peer, way.hosts, way.port, limit)
        if greeting is None or greeting.transport is None:
            raise _NoLane(f"TCP to port {way.port} does not get through to the peer", BLOCKED_SECONDS)
        welcome = False
        try:
            if not wish.wanted:  # too late, or only a probe: the ticket lapses, the way is open
                return
            async with asyncio.timeout(limit):
                welcome = await greeting.enter(ticket, wish)
        except TimeoutError:
            pass
        finally:
            if not welcome:
                greeting.transport.abort()
        if not welcome:
            way.tickets.clear()
            raise _NoLane("the peer refused the lane", REFUSED_SECONDS)

    async def _ticket(self, way: _LanePath, kind: StreamKind) -> bytes:
        """A ticket, ready or fetched. Raises LinkClosed and _NoLane."""
        ready = way.tickets.setdefault(kind, deque())
        while ready:
            ticket, expires = ready.popleft()
            if expires > self._clock():
                return ticket
        # Of many that open at once, one brings some in reserve.
        ask = TicketRequest(kind, 1 if way.asking else TICKETS_PER_REQUEST)
        asked, answer = self._clock(), None
        way.asking += 1
        try:
            stream = way.link.open(StreamKind.LANE_TICKET, ask)
            try:
                async with asyncio.timeout(REACH_SECONDS + 4 * way.link.rtt):
                    answer = await ask.answer
            finally:
                stream.abort()
        except TimeoutError:
            pass
        finally:
            way.asking -= 1
        if answer is None:
            raise _NoLane("the peer did not answer when asked for a lane", REFUSED_SECONDS)
        if not answer.port:
            raise _NoLane("the peer accepts no lanes", BLOCKED_SECONDS)
        if not answer.tickets:
            raise _NoLane("the peer has no lane to spare", REFUSED_SECONDS)
        way.port = answer.port
        expires = asked + max(0.0, answer.life - _TICKET_MARGIN_SECONDS)
        ready.extend((ticket, expires) for ticket in answer.tickets[1:])
        return answer.tickets[0]


def _kernel_figures(lane: asyncio.Transport) -> tuple[int, int, int] | None:
    """Bytes sent and received and the delivery rate of a lane, from the kernel; None where it does not say."""
    option, connection = getattr(socket, "TCP_INFO", None), lane.get_extra_info("socket")
    if option is None or connection is None:
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES:  # another system's, or an old kernel's
        return None
    return struct.unpack_from("=QQ", info, 120) + struct.unpack_from("=Q", info, 160)
