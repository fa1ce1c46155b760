"""Nodes with tunnels, assembled as in the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lane_rig import Ear
from net_rig import MEMBER, leftovers

from meshllm.core.records import NodeId, PeerAddress
from meshllm.net.base import Link, StreamKind
from meshllm.net.identity import Identity
from meshllm.net.lanes.lanes import Lanes
from meshllm.net.memory import MemoryNetwork, MemoryTransport
from meshllm.net.node_transport import NodeTransport
from meshllm.net.quic.transport import QuicTransport
from meshllm.net.tunnels.tunnels import Tunnels

HTTP = StreamKind.HTTP_TUNNEL


class House:
    """A node with tunnels, assembled as in the daemon; it echoes what peers send."""

    def __init__(self, transport: NodeTransport, identity: Identity, with_lanes: bool) -> None:
        self.transport, self.node = transport, identity.node
        self.tunnels = Tunnels(transport, Lanes(identity) if with_lanes else None, lambda peer, kind: True)
        self.address = PeerAddress("127.0.0.1", 0)
        self.ears: list[Ear] = []
        self.callers: list[NodeId] = []
        self.linked = asyncio.Event()
        self.tunnels.serve(HTTP, self.served)

    def served(self, peer: NodeId) -> Ear:
        self.callers.append(peer)
        self.ears.append(Ear(echo=True))
        return self.ears[-1]

    def link_up(self, link: Link) -> None:
        self.linked.set()

    def link_down(self, link: Link, reason: str) -> None:
        self.tunnels.link_down(link)

    def link_refused(self, peer: NodeId | None, address: PeerAddress, code: str) -> None: ...

    def message(self, link: Link, payload: bytes) -> None: ...

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        return self.tunnels.accept(link, kind)

    async def open(self, other: House, kind: StreamKind = HTTP) -> Ear:
        ear = await self.tunnels.open(other.node, kind, Ear, addresses=[other.address])
        assert isinstance(ear, Ear)
        return ear


@asynccontextmanager
async def street(
    kind: str, folder: Path, with_lanes: bool, listening: bool = True
) -> AsyncIterator[tuple[House, House]]:
    """Two nodes without a link."""
    network, houses = MemoryNetwork(), list[House]()
    for number in (1, 2):
        who = Identity.load_or_create(folder / str(number))
        transport: NodeTransport
        if kind == "memory":
            transport = MemoryTransport(who, lambda: MEMBER, network, address=PeerAddress("127.0.0.1", number))
        else:
            transport = QuicTransport(who, lambda: MEMBER, host="127.0.0.1")
        house = House(transport, who, with_lanes)
        house.address = PeerAddress("127.0.0.1", await transport.start(house))
        if listening:
            house.tunnels.start(0 if kind == "memory" else house.address.port, "127.0.0.1")
        houses.append(house)
    try:
        yield houses[0], houses[1]
    finally:
        for house in houses:
            await house.transport.close()
            await house.tunnels.close()
    await asyncio.sleep(0)
    leftovers()
