"""Nodes for transport tests, over memory or QUIC, and a peer that sends arbitrary bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshllm.core.membership.certificates import ALL_RIGHTS, Certificate, MeshKey, Right
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, PeerAddress, Role
from meshllm.daemon.mesh_state import public_key
from meshllm.net.base import Link, StreamKind
from meshllm.net.handshake import Credentials, Frames, frame
from meshllm.net.identity import Identity
from meshllm.net.memory import MemoryConnection, MemoryNetwork, MemoryTransport
from meshllm.net.node_link import NodeLink
from meshllm.net.node_transport import NodeTransport
from meshllm.net.quic.happy_eyeballs import PendingDial
from meshllm.net.quic.transport import QuicStreamConnection, QuicTransport
from meshllm.wire.mesh.certificates import CERTIFICATE_BYTES, sign_certificate
from meshllm.wire.mesh.hello import HelloMessage, HelloRefusal, decode_hello, encode_hello
from meshllm.wire.mesh.invite import InviteTerms, invite_key

MESH = MeshId(b"mesh-id-16-bytes")
SECRET = b"secret--16-bytes" * 2  # the private mesh key
MESH_KEY = public_key(SECRET)
# Stands for the certificate of any node, so that rigs need none for each.
CERTIFICATE = b"member".ljust(CERTIFICATE_BYTES, b"-")
NOW = 2_000_000_000


class Checks:
    """Who is a member: nodes that show CERTIFICATE, and nodes with an invite of the mesh key."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.changes: tuple[bytes, ...] = ()

    def certificate_of(self, node: NodeId, data: bytes) -> Certificate | HelloRefusal:
        """The certificate of any node."""
        if data != CERTIFICATE:
            return HelloRefusal("wrong_mesh", "no member", "ask for an invite")
        return Certificate(node, ALL_RIGHTS, 0, NOW + 9, bytes(8), node)

    def follow(self, changes: tuple[bytes, ...]) -> None:
        """Keep them."""
        self.changes = changes

    def key_changes(self, certificate: bytes) -> tuple[bytes, ...]:
        """There are none."""
        return ()

    def key_of_invite(self, terms: InviteTerms) -> bytes | HelloRefusal:
        """The key."""
        if not terms.valid_at(self.now):
            return HelloRefusal("expired_invite", "The invite has expired.", "mesh-llm invite")
        return invite_key(SECRET, terms, NodeId(bytes(32)))

    def redeem(self, terms: InviteTerms, node: NodeId) -> tuple[MeshKey, bytes, bytes] | HelloRefusal:
        """Admit it."""
        private = SECRET if Right.ADMIT in terms.rights else b""
        return MESH_KEY, signed_for(node, terms.rights), private


def signed_for(node: NodeId, rights: Right) -> bytes:
    """A real certificate."""
    made = Certificate(node, rights, 0, NOW + 9, bytes(8), node)
    return sign_certificate(made, MESH_KEY, Ed25519PrivateKey.from_private_bytes(SECRET).sign).data


MEMBER = Credentials(MESH, Checks(), CERTIFICATE)
# Longer than anything takes on a busy machine; only a failing test reaches it.
PATIENCE = 30.0


def identity() -> Identity:
    """A node's key that is in no file."""
    return Identity(Ed25519PrivateKey.generate(), Path("/nowhere"))


class Changes:
    """An object that changes; `until` waits for a fact."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def change(self) -> None:
        """Something has changed."""
        self._changed.set()

    async def until(self, fact: Callable[[], object]) -> None:
        """Wait until `fact` holds."""
        async with asyncio.timeout(PATIENCE):
            while not fact():
                self._changed.clear()
                await self._changed.wait()


class Talker(Changes, asyncio.Protocol):
    """A stream's protocol that records what happens. `keep`: the result of `eof_received`."""

    def __init__(self, *, keep: bool = True, echo: bool = False, pause: bool = False) -> None:
        super().__init__()
        self.keep, self.echo, self.pause = keep, echo, pause
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.received = bytearray()
        self.ended = self.lost = self.paused = False
        self.error: Exception | None = None
        self.pauses = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.pause:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.echo:
            self.transport.write(data)
        self.change()

    def eof_received(self) -> bool:
        self.ended = True
        self.change()
        return self.keep

    async def end(self) -> None:
        """Wait for the peer's last byte."""
        await self.until(lambda: self.ended)

    def pause_writing(self) -> None:
        assert not self.paused
        self.paused = True
        self.pauses += 1
        self.change()

    def resume_writing(self) -> None:
        assert self.paused
        self.paused = False
        self.change()

    def connection_lost(self, exc: Exception | None) -> None:
        assert not self.lost
        self.lost, self.error = True, exc
        self.change()


class Recorder(Changes):
    """A `LinkHandler` that records. `serve`: the protocol of an opened stream."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, NodeId]] = []
        self.reasons: list[str] = []
        self.refusals: list[tuple[NodeId | None, str]] = []
        self.messages: list[bytes] = []
        self.streams: list[Talker] = []
        self.up: dict[NodeId, Link] = {}
        self.serve: Callable[[StreamKind], Talker | None] = lambda kind: Talker()

    def link_up(self, link: Link) -> None:
        assert link.facts.peer not in self.up
        self.up[link.facts.peer] = link
        self.events.append(("up", link.facts.peer))
        self.change()

    def link_down(self, link: Link, reason: str) -> None:
        assert self.up.pop(link.facts.peer) is link
        self.events.append(("down", link.facts.peer))
        self.reasons.append(reason)
        self.change()

    def link_refused(self, peer: NodeId | None, address: PeerAddress, code: str) -> None:
        self.refusals.append((peer, code))
        self.change()

    def message(self, link: Link, payload: bytes) -> None:
        self.messages.append(payload)
        self.change()

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        talker = self.serve(kind)
        if talker is not None:
            self.streams.append(talker)
        self.change()
        return talker


@dataclass
class Node:
    """A transport, its handler and its address."""

    transport: NodeTransport
    heard: Recorder
    address: PeerAddress

    @property
    def id(self) -> NodeId:
        return self.transport.identity.node

    @property
    def way(self) -> BootstrapAddress:
        return BootstrapAddress(self.id, (self.address,))


@dataclass
class World:
    """The nodes of one test; `kind` is "memory" or "quic"."""

    kind: str
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    nodes: list[Node] = field(default_factory=list)
    strangers: list[Stranger] = field(default_factory=list)

    async def node(self, credentials: Credentials = MEMBER, **options: Any) -> Node:
        """A listening node with these `credentials`."""
        who = options.pop("who", None) or identity()
        transport: NodeTransport
        if self.kind == "memory":
            transport = MemoryTransport(who, lambda: credentials, self.network, **options)
            address = transport.address
            await transport.start(heard := Recorder())
        else:
            transport = QuicTransport(who, lambda: credentials, host="127.0.0.1", **options)
            address = PeerAddress("127.0.0.1", await transport.start(heard := Recorder()))
        node = Node(transport, heard, address)
        self.nodes.append(node)
        return node

    async def pair(self) -> tuple[Node, Node, NodeLink, NodeLink]:
        """Two linked nodes and the link at both ends; the first dialled."""
        one, other = await self.node(), await self.node()
        link = await one.transport.dial(other.way)
        await other.heard.until(lambda: one.id in other.heard.up)
        return one, other, cast(NodeLink, link), cast(NodeLink, other.heard.up[one.id])

    async def stranger(self, target: Node) -> Stranger:
        """A connection to `target` that has sent nothing."""
        stranger = Stranger(target)
        self.strangers.append(stranger)
        caller = await self.node()
        stranger.attach(caller.transport.attempt(target.address, cast(PendingDial, stranger)))
        await stranger.until(lambda: stranger.is_ready or stranger.why)
        return stranger

    async def close(self) -> None:
        """Close everything; check that nothing is left."""
        for stranger in self.strangers:
            stranger.connection.close("the test is over")
        for node in self.nodes:
            await node.transport.close()
            assert not node.heard.up
        await asyncio.sleep(0)
        leftovers()


def leftovers() -> None:
    """Fails if a task, a timer or an open socket is left."""
    loop = asyncio.get_running_loop()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    timers = [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]
    assert [timer for timer in timers if "meshllm" in repr(timer)] == []


class Stranger(Changes):
    """Sends arbitrary bytes on a connection: both the dial and the connection's user."""

    def __init__(self, target: Node) -> None:
        super().__init__()
        self.is_ready = False
        self.why = ""
        self.target = target
        self.connection: MemoryConnection | QuicStreamConnection = cast(Any, None)
        self.inbox: dict[int, bytearray] = {}
        self.resets: dict[int, int] = {}
        self._frames = Frames(1 << 20)

    # -- for tests

    def say(self, message: HelloMessage | bytes) -> None:
        """Send a handshake frame."""
        payload = message if isinstance(message, bytes) else encode_hello(message)
        self.connection.send(0, frame(payload))

    async def hear(self) -> tuple[HelloMessage, bytes]:
        """The next frame, and its bytes on the wire."""
        await self.until(lambda: self._frames.ready() or self.why)
        payload = self._frames.take()
        assert payload is not None, self.why
        return decode_hello(payload), payload

    # -- the connection's side

    def matches(self, node: NodeId) -> bool:
        return node == self.target.id

    def ready(self, attempt: object, peer: NodeId) -> None:
        self.is_ready = True
        self.change()

    def failed(self, attempt: object, reason: str, wrong_node: bool = False) -> None:
        self.why = reason
        self.change()

    def attach(self, attempt: object) -> None:
        self.connection = cast(MemoryConnection | QuicStreamConnection, attempt)
        self.connection.attach(self)

    def data(self, stream: int, data: bytes, end: bool) -> None:
        if stream == 0:
            self._frames.feed(data)
        self.inbox.setdefault(stream, bytearray()).extend(data)
        self.change()

    def was_reset(self, stream: int, code: int) -> None:
        self.resets[stream] = code
        self.change()

    def was_stopped(self, stream: int) -> None:
        pass

    def acknowledged(self) -> None:
        pass

    def unread(self) -> int:
        return 0

    def lost(self, reason: str) -> None:
        self.why = reason
        self.change()


def client(credentials: Credentials = MEMBER) -> Credentials:
    """Credentials of a client."""
    return replace(credentials, role=Role.CLIENT)
