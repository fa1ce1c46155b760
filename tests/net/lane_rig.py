"""Nodes with lanes on loopback and an in-memory link between them; protocols that record what they receive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from meshllm.core.records import BootstrapAddress, MeshId, NodeId, PeerAddress, Role
from meshllm.errors import LinkClosed, PeerUnreachable
from meshllm.net.base import Link, LinkFacts, LinkHandler, StreamKind
from meshllm.net.identity import Identity
from meshllm.net.lanes.lanes import Lanes
from meshllm.net.tunnels.tunnels import Tunnels

HERE = PeerAddress("127.0.0.1", 1)


class Wire(asyncio.Transport):
    """One end of an in-memory stream: written bytes arrive in the loop's next iteration."""

    def __init__(self, link: FakeLink, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.link, self.protocol = link, protocol
        self.other: Wire
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        asyncio.get_running_loop().call_soon(self.other.hear, bytes(data))

    def hear(self, data: bytes) -> None:
        if not self.closed and isinstance(self.protocol, asyncio.Protocol):
            self.protocol.data_received(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.lose(None)

    def abort(self) -> None:
        self.lose(ConnectionError("cut off"))

    def lose(self, error: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self.link.wires.discard(self)
        loop = asyncio.get_running_loop()
        loop.call_soon(self.protocol.connection_lost, error)
        loop.call_soon(self.other.lose, error)


class FakeLink:
    """One end of an in-memory link."""

    rtt = 0.001

    def __init__(self, owner: FakeTransport, peer: NodeId, dialled: bool) -> None:
        self.owner = owner
        self.facts = LinkFacts(peer, Role.NODE, MeshId(bytes(16)), HERE, dialled, self.rtt, 1)
        self.other: FakeLink
        self.wires: set[Wire] = set()
        self.opened: list[StreamKind] = []
        self.down = False

    @property
    def streams(self) -> int:
        return len(self.wires)

    def open(self, kind: StreamKind, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        if self.down:
            raise LinkClosed("The link is down.")
        self.opened.append(kind)
        served = self.other.owner.handler.stream(self.other, kind)
        ours, theirs = Wire(self, protocol), Wire(self.other, served or asyncio.Protocol())
        ours.other, theirs.other = theirs, ours
        self.wires.add(ours)
        self.other.wires.add(theirs)
        protocol.connection_made(ours)
        theirs.protocol.connection_made(theirs)
        if served is None:
            theirs.abort()
        return ours

    def send(self, payload: bytes) -> bool:
        return not self.down

    def close(self, reason: str) -> None:
        for end in (self, self.other):
            if not end.down:
                end.down = True
                end.owner.known.pop(end.facts.peer, None)
                for wire in list(end.wires):
                    wire.abort()
                end.owner.handler.link_down(end, reason)


class FakeTransport:
    """Dials the nodes in `directory`."""

    def __init__(self, directory: dict[NodeId, FakeTransport], node: NodeId) -> None:
        self.directory, self.node = directory, node
        self.known: dict[NodeId, FakeLink] = {}
        self.handler: LinkHandler
        self.dialled: list[BootstrapAddress] = []
        directory[node] = self

    async def start(self, handler: LinkHandler) -> int:
        self.handler = handler
        return 0

    async def dial(self, way: BootstrapAddress) -> FakeLink:
        self.dialled.append(way)
        other = self.directory.get(NodeId(way.pin))
        if other is None:
            raise PeerUnreachable("Nobody there.")
        ours, theirs = FakeLink(self, other.node, True), FakeLink(other, self.node, False)
        ours.other, theirs.other = theirs, ours
        self.known[other.node], other.known[self.node] = ours, theirs
        return ours

    def link(self, peer: NodeId) -> FakeLink | None:
        return self.known.get(peer)

    def links(self) -> list[Link]:
        return list(self.known.values())

    async def close(self, reason: str = "this node stops") -> None:
        for link in self.links():
            link.close(reason)


class Ear(asyncio.Protocol):
    """Records what it receives; `until(n)` waits for n bytes, `gone` for the end."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.heard = bytearray()
        self.paused = False
        self.end_seen = False
        self.transport: asyncio.Transport
        self.gone: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not descend from asyncio's
        self.changed.set()

    def data_received(self, data: bytes) -> None:
        self.heard += data
        self.changed.set()
        if self.echo:
            self.transport.write(data)

    def eof_received(self) -> None:
        self.end_seen = True

    def pause_writing(self) -> None:
        self.paused = True
        self.changed.set()

    def resume_writing(self) -> None:
        self.paused = False
        self.changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set_result(error)
        self.changed.set()

    async def when(self, condition: Callable[[Ear], bool]) -> None:
        """Wait until `condition` holds; checked whenever something arrives."""
        async with asyncio.timeout(20):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    async def until(self, length: int) -> bytes:
        await self.when(lambda ear: len(ear.heard) >= length)
        return bytes(self.heard)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Node:
    """One node: its identity, its link end, its lanes, and the protocols that serve its peers' tunnels."""

    identity: Identity
    transport: FakeTransport
    lanes: Lanes
    tunnels: Tunnels
    port: int = 0
    ears: list[Ear] = field(default_factory=list)

    @property
    def node(self) -> NodeId:
        return self.identity.node

    def serve(self, peer: NodeId) -> Ear:
        self.ears.append(Ear(echo=True))
        return self.ears[-1]

    # the daemon's link handler does the same

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        return self.tunnels.accept(link, kind)

    def link_up(self, link: Link) -> None: ...

    def link_down(self, link: Link, reason: str) -> None:
        self.tunnels.link_down(link)

    def link_refused(self, peer: NodeId | None, address: PeerAddress, code: str) -> None: ...

    def message(self, link: Link, payload: bytes) -> None: ...


@dataclass
class Town:
    """Some nodes, each linked to the first."""

    nodes: list[Node]
    clock: Clock
    directory: dict[NodeId, FakeTransport]

    def link(self, here: int = 0, there: int = 1) -> FakeLink:
        link = self.nodes[here].transport.link(self.nodes[there].node)
        assert link is not None
        return link


@asynccontextmanager
async def town(folder: Path, count: int = 2, listening: bool = True) -> AsyncIterator[Town]:
    """`count` nodes, the first linked to each of the others; at the end nothing of them is left."""
    made = Town([], Clock(), {})
    for number in range(count):
        identity = Identity.load_or_create(folder / f"node{number}")
        lanes = Lanes(identity, clock=made.clock)
        transport = FakeTransport(made.directory, identity.node)
        node = Node(identity, transport, lanes, Tunnels(transport, lanes, lambda peer, kind: True))
        await transport.start(node)
        if listening:
            node.port = node.tunnels.start(0, "127.0.0.1")
        for kind in (StreamKind.HTTP_TUNNEL, StreamKind.RPC_TUNNEL):
            node.tunnels.serve(kind, node.serve)
        made.nodes.append(node)
    for node in made.nodes[1:]:
        await made.nodes[0].transport.dial(BootstrapAddress(node.node, (HERE,)))
    made.nodes[0].transport.dialled.clear()
    before = asyncio.all_tasks()
    try:
        yield made
    finally:
        for node in made.nodes:
            await node.transport.close()
            await node.tunnels.close()
        assert asyncio.all_tasks() <= before
