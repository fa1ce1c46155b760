"""Tunnels: byte streams to peers, over a lane where TCP gets through, else over a QUIC stream.

Both ends use asyncio protocols, as on a socket. A tunnel ends with the link to its peer.
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

# Tunnels of one peer, streams and lanes together. A gateway at full load has some dozens.
MAX_TUNNELS_PER_PEER = 256

Served = Callable[[NodeId], asyncio.BaseProtocol]


@dataclass(frozen=True, slots=True)
class TunnelFacts:
    """Tunnels to one peer. `transport`: "lane", "quic", or "" before the first; `reason`: why no lane is used.

    `streams` counts open QUIC streams of both directions.
    """

    transport: str
    streams: int
    reason: str
    lanes: LaneFacts


class Tunnels:
    """Opens tunnels to peers, and gives each tunnel that a peer opens to its server. `lanes` None: QUIC only."""

    def __init__(
        self,
        transport: Transport,
        lanes: Lanes | None,
        permitted: Callable[[NodeId, StreamKind], bool],
    ) -> None:
        """`permitted`: whether a peer may open tunnels of a kind; asked for each one, over a stream or a lane."""
        self._transport = transport
        self._permitted = permitted
        self._lanes = lanes
        self._servers: dict[StreamKind, Served] = {}

    def start(self, port: int, host: str | None = None) -> int:
        """Accept lanes, on TCP `port` if it is free. Returns the port; 0: no lanes."""
        return self._lanes.start(self._accept_lane, port, host) if self._lanes is not None else 0

    def serve(self, kind: StreamKind, factory: Served) -> None:
        """Serve tunnels of that kind that peers open with `factory(peer)`."""
        self._servers[kind] = factory

    async def open(
        self,
        peer: NodeId,
        kind: StreamKind,
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        addresses: Iterable[PeerAddress] = (),
    ) -> asyncio.BaseProtocol:
        """Open a tunnel to `peer`; returns the connected protocol that `factory` made. Dials if there is no link.

        A peer that does not serve that kind, or has too many tunnels, closes it at once. Raises PeerUnreachable,
        PeerRefused and LinkClosed, within DIAL_SECONDS and the time of `Lanes.open`.
        """
        ways = tuple(addresses)
        link = self._transport.link(peer)
        if link is None:
            if not ways:
                raise PeerUnreachable(
                    f"There is no link to node {short(peer)}, and none of its addresses is known.",
                    advice="Check that the node runs and is in the same mesh: mesh-llm status.",
                )
            link = await self._transport.dial(BootstrapAddress(peer, ways))
        if self._lanes is not None and kind in LANE_KINDS:
            protocol = await self._lanes.open(link, kind, factory, ways)
            if protocol is not None:
                return protocol
        protocol = factory()
        link.open(kind, protocol)
        return protocol

    def accept(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """For `LinkHandler.stream`: the protocol that serves a stream of the peer, or None to refuse it."""
        peer = link.facts.peer
        if self.count(peer) >= MAX_TUNNELS_PER_PEER:
            return None
        if kind is StreamKind.LANE_TICKET:
            return self._lanes.ticket_handler(link) if self._lanes is not None else None
        return self._served(peer, kind)

    def _served(self, peer: NodeId, kind: StreamKind) -> asyncio.BaseProtocol | None:
        server = self._servers.get(kind)
        return server(peer) if server is not None and self._permitted(peer, kind) else None

    def _accept_lane(self, peer: NodeId, kind: StreamKind, _: asyncio.Transport) -> asyncio.BaseProtocol | None:
        # A lane without a link has no owner that would end it.
        if self._transport.link(peer) is None or self.count(peer) >= MAX_TUNNELS_PER_PEER:
            return None
        return self._served(peer, kind)

    def count(self, peer: NodeId) -> int:
        """Open tunnels to and from `peer`; with 0 the link can be closed without a loss."""
        link = self._transport.link(peer)
        return (link.streams if link is not None else 0) + (self._lanes.count(peer) if self._lanes is not None else 0)

    def facts(self) -> dict[NodeId, TunnelFacts]:
        """The state of the tunnels to each linked peer."""
        return {link.facts.peer: self._facts(link) for link in self._transport.links()}

    def _facts(self, link: Link) -> TunnelFacts:
        if self._lanes is None:
            return TunnelFacts("quic", link.streams, "lanes are disabled", LaneFacts())
        lanes = self._lanes.facts(link.facts.peer)
        transport = "quic" if lanes.blocked else "lane" if lanes.proved else ""
        return TunnelFacts(transport, link.streams, lanes.blocked, lanes)

    def link_down(self, link: Link) -> None:
        """For `LinkHandler.link_down`: end the peer's lanes."""
        if self._lanes is not None:
            self._lanes.forget(link.facts.peer)

    async def close(self) -> None:
        """Abort all lanes. Streams end with their links."""
        if self._lanes is not None:
            await self._lanes.close()
