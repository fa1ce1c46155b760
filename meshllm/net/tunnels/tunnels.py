"""Tunnels: byte streams to peers, over a lane where TCP gets through, else over a QUIC stream.

Law: who opens a tunnel does not see which it is; who serves one is told only which peer it comes from. Both ends hold
the protocols of asyncio that they would put on a socket. A tunnel lives no longer than the link to its peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from meshllm.core.records import BootstrapAddress, NodeId, PeerAddress, short
from meshllm.errors import PeerUnreachable
from meshllm.net.base import Link, StreamKind, Transport
from meshllm.net.lanes.lanes import LaneFacts, Lanes
from meshllm.net.lanes.listener import LANE_KINDS

# A peer's tunnels into this node, streams and lanes together. A gateway at full load has some dozens.
MAX_TUNNELS_PER_PEER = 256

Served = Callable[[NodeId], asyncio.BaseProtocol]


@dataclass(frozen=True, slots=True)
class TunnelFacts:
    """How tunnels to a peer run: `way` is "lane", "quic", or "" before the first; `reason` says why not on a lane.

    `streams` counts what is open on the link, whoever opened it.
    """

    way: str
    streams: int
    reason: str
    lanes: LaneFacts


class Tunnels:
    """Opens tunnels to peers, and hands those that peers open to what serves them. `lanes` None: QUIC only."""

    def __init__(self, transport: Transport, lanes: Lanes | None) -> None:
        self._transport = transport
        self._lanes = lanes
        self._servers: dict[StreamKind, Served] = {}

    def start(self, port: int, host: str | None = None) -> int:
        """Accept lanes, on TCP `port` if it is free. Returns the port, 0 if there are to be no lanes."""
        return self._lanes.start(self._accept_lane, port, host) if self._lanes is not None else 0

    def serve(self, kind: StreamKind, factory: Served) -> None:
        """From now on `factory(peer)` serves the tunnels of that kind that peers open."""
        self._servers[kind] = factory

    async def open(
        self,
        peer: NodeId,
        kind: StreamKind,
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        addresses: Iterable[PeerAddress] = (),
    ) -> asyncio.BaseProtocol:
        """A tunnel to `peer` with a protocol of `factory` on it, already connected; the link is made if there is none.

        A peer that does not serve that kind, or takes no more, closes it at once. Raises PeerUnreachable, PeerRefused
        and LinkClosed, within DIAL_SECONDS and what `Lanes.open` takes.
        """
        ways = tuple(addresses)
        link = self._transport.link(peer)
        if link is None:
            if not ways:
                raise PeerUnreachable(f"There is no link to {short(peer)}, and no address of it is known.")
            link = await self._transport.dial(BootstrapAddress(peer, ways))
        if self._lanes is not None and kind in LANE_KINDS:
            protocol = await self._lanes.open(link, kind, factory, ways)
            if protocol is not None:
                return protocol
        protocol = factory()
        link.open(kind, protocol)
        return protocol

    def accept(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """For `LinkHandler.stream`: what serves a stream the peer opens, or None to refuse it."""
        peer = link.facts.peer
        if self.count(peer) >= MAX_TUNNELS_PER_PEER:
            return None
        if kind is StreamKind.LANE_TICKET:
            return self._lanes.desk(link) if self._lanes is not None else None
        server = self._servers.get(kind)
        return server(peer) if server is not None else None

    def _accept_lane(self, peer: NodeId, kind: StreamKind, _: asyncio.Transport) -> asyncio.BaseProtocol | None:
        server = self._servers.get(kind)
        # Without a link there is nothing that the lane could belong to.
        if server is None or self._transport.link(peer) is None or self.count(peer) >= MAX_TUNNELS_PER_PEER:
            return None
        return server(peer)

    def count(self, peer: NodeId) -> int:
        """Open tunnels to and from `peer`: 0 means that hanging up disturbs nobody."""
        link = self._transport.link(peer)
        return (link.streams if link is not None else 0) + (self._lanes.count(peer) if self._lanes is not None else 0)

    def kinds(self) -> dict[NodeId, TunnelFacts]:
        """How tunnels run now, for each linked peer."""
        return {link.facts.peer: self._facts(link) for link in self._transport.links()}

    def _facts(self, link: Link) -> TunnelFacts:
        if self._lanes is None:
            return TunnelFacts("quic", link.streams, "lanes are switched off", LaneFacts())
        lanes = self._lanes.facts(link.facts.peer)
        way = "quic" if lanes.blocked else "lane" if lanes.proved else ""
        return TunnelFacts(way, link.streams, lanes.blocked, lanes)

    def link_down(self, link: Link) -> None:
        """For `LinkHandler.link_down`: the peer's lanes end with the link."""
        if self._lanes is not None:
            self._lanes.forget(link.facts.peer)

    async def close(self) -> None:
        """Cut off all lanes. Streams end with their links."""
        if self._lanes is not None:
            await self._lanes.close()
