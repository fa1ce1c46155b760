"""Lanes: direct TLS 1.3 connections over TCP to a linked peer, for bulk and per-token traffic.

Invariants: a lane is opened with a one-time ticket fetched over the link; nothing is sent on it before the peer has
shown its node key; it ends with the link. Where TCP does not get through, only the first caller waits
OPEN_WAIT_SECONDS; later ones use QUIC at once while TCP is probed in the background.
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
from meshllm.net.lanes.dialler import LaneRequest, TicketRequest, connect, hosts_to_try
from meshllm.net.lanes.listener import LaneListener, Serve
from meshllm.tasks import Owner

# Fetched at once and kept, so that only the first lane of a burst costs a round trip over the link.
TICKETS_PER_REQUEST = 4
# TCP and TLS take two round trips; a peer that does not answer within this and 4 round trips is behind a filter.
CONNECT_SECONDS = 1.0
# A caller waits this and 4 round trips (ticket, TCP, TLS, acceptance); then its tunnel uses QUIC. Callers during a
# pending attempt do not wait.
OPEN_WAIT_SECONDS = 0.25
# Pause before TCP is tried again: after it did not get through, and after a refused lane.
BLOCKED_SECONDS = 60.0
REFUSED_SECONDS = 5.0
# Subtracted from a ticket's lifetime: the acceptor checks it after the TLS handshake.
_TICKET_MARGIN_SECONDS = 2.0
# `struct tcp_info` of Linux (include/uapi/linux/tcp.h): bytes acknowledged and received at 120, delivery rate at 160.
_TCP_INFO_BYTES = 168


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """State of the lanes to a peer. `proved`: one was opened; `blocked`: why none is tried now, or empty.

    `sent` and `received`: bytes over the open lanes; `rate`: the delivery rate of the fastest in bytes/s, from the
    kernel; None where the system does not report it.
    """

    open: int = 0
    proved: bool = False
    blocked: str = ""
    sent: int | None = None
    received: int | None = None
    rate: int | None = None


@dataclass(slots=True)
class _LanePath:
    """Knowledge about TCP to one peer, for the life of one link."""

    link: Link
    hosts: tuple[str, ...] = ()
    tickets: dict[StreamKind, deque[tuple[bytes, float]]] = field(default_factory=dict)
    port: int = 0
    asking: int = 0
    proved: bool = False
    probing: bool = False
    blocked: str = ""
    blocked_until: float = 0.0
    pending: asyncio.Task[None] | None = None  # an attempt that outlasted its caller's wait

    def blocked_reason(self) -> str:
        """Why a tunnel does not wait for a lane now; empty if it does."""
        slow = self.pending is not None and not self.pending.done()
        return self.blocked or ("the TCP connection is still being tried" if slow else "")


class _NoLane(Exception):
    """No lane this time: the reason, and the pause before the next attempt in seconds."""

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
        self._paths: dict[NodeId, _LanePath] = {}
        self._open: dict[NodeId, list[asyncio.Transport]] = {}

    def start(self, serve: Serve, port: int, host: str | None = None) -> int:
        """Listen on TCP `port`, or on a free port if it is taken. Return the port; 0: this node accepts no lanes.

        `serve` returns the protocol for an accepted lane, or None to refuse it.
        """
        self._serve = serve
        return self._listener.start(port, host)

    def ticket_handler(self, link: Link) -> asyncio.BaseProtocol:
        """The protocol that serves a LANE_TICKET stream of the peer."""
        return self._listener.ticket_handler(link)

    async def open(
        self,
        link: Link,
        kind: StreamKind,
        factory: Callable[[], asyncio.BaseProtocol],
        addresses: Iterable[PeerAddress] = (),
    ) -> asyncio.BaseProtocol | None:
        """Open a lane with a protocol of `factory`; return the connected protocol, or None: use a stream.

        Takes at most OPEN_WAIT_SECONDS and 4 round trips. `addresses`: other addresses of the peer. Never raises for
        what a peer or a network does.
        """
        path = self._path(link, addresses)
        if path.blocked and self._clock() >= path.blocked_until and not path.probing:
            path.probing = True
            self._owner.start(self._probe(path), f"probe {short(link.facts.peer)}")
        if path.blocked_reason():
            return None
        request = LaneRequest(factory, lambda lane: self._granted(path, lane))
        attempt = self._owner.start(self._attempt(path, kind, request), f"lane to {short(link.facts.peer)}")
        try:
            await asyncio.wait({attempt}, timeout=OPEN_WAIT_SECONDS + 4 * link.rtt)
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            request.wanted = False  # a late lane is dropped, but its outcome is recorded
        if not attempt.done():
            path.pending = attempt
        return request.protocol

    def count(self, peer: NodeId) -> int:
        """Number of open lanes to and from `peer`."""
        return len(self._open_lanes(peer))

    def facts(self, peer: NodeId) -> LaneFacts:
        """State of the lanes to `peer`."""
        living, path = self._open_lanes(peer), self._paths.get(peer)
        figures = [found for lane in living if (found := _kernel_figures(lane)) is not None]
        sent, received, rates = zip(*figures, strict=True) if figures else ((), (), ())
        return LaneFacts(
            open=len(living),
            proved=bool(living) or (path is not None and path.proved),
            blocked=path.blocked_reason() if path is not None else "",
            sent=sum(sent) if figures else None,
            received=sum(received) if figures else None,
            rate=max(rates) if figures else None,
        )

    def forget(self, peer: NodeId) -> None:
        """The link to `peer` has ended: abort its lanes, invalidate its tickets."""
        self._paths.pop(peer, None)
        self._listener.forget(peer)
        for lane in self._open.pop(peer, ()):
            lane.abort()

    async def close(self) -> None:
        """Abort all lanes and stop listening."""
        await self._owner.close()
        await self._listener.close()
        for peer in [*self._paths, *self._open]:
            self.forget(peer)
        await asyncio.sleep(0)  # an aborted socket is closed in the next iteration of the loop

    # -- state

    def _path(self, link: Link, addresses: Iterable[PeerAddress]) -> _LanePath:
        path = self._paths.get(link.facts.peer)
        if path is None or path.link is not link:
            path = self._paths[link.facts.peer] = _LanePath(link)
        path.hosts = hosts_to_try(link.facts.address, addresses)
        return path

    def _open_lanes(self, peer: NodeId) -> list[asyncio.Transport]:
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
        self._open_lanes(peer)
        self._open.setdefault(peer, []).append(lane)

    # -- opening

    def _granted(self, path: _LanePath, lane: asyncio.Transport) -> bool:
        """Whether a ready lane may be used: not if its link ended meanwhile."""
        if self._paths.get(path.link.facts.peer) is not path:
            return False
        self._add(path.link.facts.peer, lane)
        return True

    async def _probe(self, path: _LanePath) -> None:
        """Test whether TCP gets through, without a lane."""
        try:
            await self._attempt(path, StreamKind.HTTP_TUNNEL, LaneRequest(None, lambda _: False))
        finally:
            path.probing = False

    async def _attempt(self, path: _LanePath, kind: StreamKind, request: LaneRequest) -> None:
        """One attempt: ticket, TCP, TLS, acceptance. Its outcome is recorded in `path`."""
        try:
            await self._try(path, kind, request)
        except LinkClosed:
            return
        except _NoLane as none:
            path.blocked, path.blocked_until = none.reason, self._clock() + none.seconds
        else:
            path.proved, path.blocked = True, ""

    async def _try(self, path: _LanePath, kind: StreamKind, request: LaneRequest) -> None:
        """Raises LinkClosed and _NoLane."""
        ticket, limit = await self._ticket(path, kind), CONNECT_SECONDS + 4 * path.link.rtt
        peer = path.link.facts.peer
        greeting = await connect(self._owner, self._client, peer, path.hosts, path.port, limit)
        if greeting is None or greeting.transport is None:
            raise _NoLane(f"TCP to port {path.port} does not get through to the peer", BLOCKED_SECONDS)
        welcome = False
        try:
            if not request.wanted:  # too late, or a probe: TCP gets through, and the ticket expires unused
                return
            async with asyncio.timeout(limit):
                welcome = await greeting.enter(ticket, request)
        except TimeoutError:
            pass
        finally:
            if not welcome:
                greeting.transport.abort()
        if not welcome:
            path.tickets.clear()
            raise _NoLane("the peer refused the lane", REFUSED_SECONDS)

    async def _ticket(self, path: _LanePath, kind: StreamKind) -> bytes:
        """A kept or freshly fetched ticket. Raises LinkClosed and _NoLane."""
        ready = path.tickets.setdefault(kind, deque())
        while ready:
            ticket, expires = ready.popleft()
            if expires > self._clock():
                return ticket
        # Of concurrent requests, the first brings spare tickets.
        tickets = TicketRequest(kind, 1 if path.asking else TICKETS_PER_REQUEST)
        asked, answer = self._clock(), None
        path.asking += 1
        try:
            stream = path.link.open(StreamKind.LANE_TICKET, tickets)
            try:
                async with asyncio.timeout(CONNECT_SECONDS + 4 * path.link.rtt):
                    answer = await tickets.answer
            finally:
                stream.abort()
        except TimeoutError:
            pass
        finally:
            path.asking -= 1
        if answer is None:
            raise _NoLane("the peer did not answer the ticket request", REFUSED_SECONDS)
        if not answer.port:
            raise _NoLane("the peer accepts no lanes", BLOCKED_SECONDS)
        if not answer.tickets:
            raise _NoLane("the peer has no free lane", REFUSED_SECONDS)
        path.port = answer.port
        expires = asked + max(0.0, answer.life - _TICKET_MARGIN_SECONDS)
        ready.extend((ticket, expires) for ticket in answer.tickets[1:])
        return answer.tickets[0]


def _kernel_figures(lane: asyncio.Transport) -> tuple[int, int, int] | None:
    """Bytes sent, bytes received and delivery rate of a lane from the kernel; None where it does not report them."""
    option, connection = getattr(socket, "TCP_INFO", None), lane.get_extra_info("socket")
    if option is None or connection is None:
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _TCP_INFO_BYTES:  # another system, or an old kernel
        return None
    return struct.unpack_from("=QQ", info, 120) + struct.unpack_from("=Q", info, 160)
