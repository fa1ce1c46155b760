"""The part of a transport that does not depend on the connection: one link per peer, admission, shared dials.

Invariants: one link per peer; `link_up` and `link_down` come in pairs. Of two links to a peer the acceptor chooses one
and the dialler follows: a peer that restarted, or that saw the old link end, gets a new link; if both have dialled, the
link that the node with the smaller id dialled stays.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

from meshllm.core.records import NODE_ID_BYTES, BootstrapAddress, NodeId, PeerAddress, Role, short
from meshllm.errors import DialLimitReached, LinkClosed, PeerRefused, PeerUnreachable
from meshllm.net.base import Clock, Link, LinkHandler, StreamKind
from meshllm.net.connection_protocol import StreamConnection
from meshllm.net.handshake import AcceptorHandshake, Credentials, DiallerHandshake, HandshakeResult
from meshllm.net.identity import Identity
from meshllm.net.node_link import HANDSHAKE_SECONDS, NodeLink
from meshllm.net.quic.happy_eyeballs import Attempt, PendingDial
from meshllm.wire.mesh.hello import INSTANCE_BYTES, HelloRefusal

# A pin is a node id or its first 16 bytes (invites carry those).
PIN_BYTES = 16
# Concurrent dials; each costs a few packets a second.
MAX_DIALS = 64
# Names of ended links kept, 64 bytes each; a missing one costs one failed dial.
MAX_ENDED = 4096


class NodeTransport(ABC):
    """`base.Transport` without sockets. `credentials` is called for each handshake, because they change."""

    def __init__(
        self,
        identity: Identity,
        credentials: Callable[[], Credentials],
        *,
        max_clients: int | None = None,
        wall_clock: Callable[[], float] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.identity = identity
        self._credentials = credentials
        self._max_clients = max_clients
        self._wall_clock = wall_clock or time.time  # noqa: TID251 - invites expire by the calendar
        self._clock = clock or time.monotonic
        self._instance = secrets.token_bytes(INSTANCE_BYTES)
        self._links: dict[NodeId, NodeLink] = {}
        self._in_handshake: set[NodeLink] = set()
        self._proving: dict[NodeId, NodeLink] = {}
        self._dials: dict[bytes, PendingDial] = {}
        self._ended: OrderedDict[NodeId, bytes] = OrderedDict()
        self._handler: LinkHandler | None = None
        self._running = False

    # -- base.Transport

    async def start(self, handler: LinkHandler) -> int:
        self._handler = handler
        port = await self._listen()
        self._running = True
        return port

    async def dial(self, target: BootstrapAddress) -> Link:
        if len(target.pin) not in (PIN_BYTES, NODE_ID_BYTES):
            raise PeerRefused("The address has no node id.", reason="bad_way")
        if self.identity.node.startswith(target.pin):
            raise PeerRefused("The dialled node is this node itself.", reason="itself")
        if not self._running:
            raise LinkClosed("This node is stopping.")
        key = target.pin[:PIN_BYTES]
        existing = next((link for node, link in self._links.items() if node.startswith(target.pin)), None)
        if existing is not None:
            return existing
        dial = self._dials.get(key)
        if dial is None:
            if len(self._dials) >= MAX_DIALS:
                raise DialLimitReached(
                    f"This node is already dialling {MAX_DIALS} peers.", advice="Retry in a few seconds."
                )
            loop = asyncio.get_running_loop()
            dial = self._dials[key] = PendingDial(target, self, loop, self._dialled)
        return await asyncio.shield(dial.future)

    def link(self, peer: NodeId) -> Link | None:
        return self._links.get(peer)

    def links(self) -> list[Link]:
        return list(self._links.values())

    async def close(self, reason: str = "this node is stopping") -> None:
        self._running = False
        for dial in tuple(self._dials.values()):
            dial.drop(PeerUnreachable("This node is stopping."))
        for link in (*self._links.values(), *self._in_handshake):
            link.close(reason)
        await self._stop_listening()
        await asyncio.sleep(0)  # runs `connection_lost` of the streams

    def _dialled(self, dial: PendingDial) -> None:
        self._dials.pop(dial.target.pin[:PIN_BYTES], None)

    # -- implemented by each transport

    @abstractmethod
    async def _listen(self) -> int:
        """Listen; return the port. Raises PortTaken."""

    @abstractmethod
    async def _stop_listening(self) -> None:
        """Close the listening socket."""

    @abstractmethod
    def attempt(self, address: PeerAddress, dial: PendingDial) -> Attempt:
        """See `happy_eyeballs.Dialler`."""

    @abstractmethod
    def _attach(self, attempt: Attempt, make: Callable[[StreamConnection], NodeLink]) -> NodeLink:
        """Make the link on the connection of a ready attempt."""

    # -- dialling

    def start_handshake(self, attempt: Attempt, peer: NodeId, seconds: float) -> NodeLink:
        ended = self._ended.get(peer, b"")
        handshake = DiallerHandshake(self.identity, peer, self._credentials(), instance=self._instance, ended=ended)
        link = self._attach(attempt, self._new_link)
        self._in_handshake.add(link)
        link.start_handshake(handshake, seconds)
        return link

    def may_prove(self, link: NodeLink) -> bool:
        dial = self._dial_of(link)
        peer = link.dialled_peer
        if dial is None or peer is None or peer in self._links:
            return False
        self._proving[peer] = link
        return True

    def _dial_of(self, link: NodeLink) -> PendingDial | None:
        return next((dial for dial in self._dials.values() if dial.candidate is link), None)

    # -- accepting

    def accept(self, connection: StreamConnection) -> NodeLink:
        """A peer connected: start the acceptor's handshake."""
        link = self._new_link(connection)
        handshake = AcceptorHandshake(
            self.identity,
            self._credentials(),
            instance=self._instance,
            observed=connection.address,
            admit=self._admit,
        )
        self._in_handshake.add(link)
        link.start_handshake(handshake, HANDSHAKE_SECONDS)
        return link

    def _admit(self, result: HandshakeResult) -> HelloRefusal | None:
        """Decide whether an authenticated peer may stay; a refusal, or None."""
        peer, existing = result.peer, self._links.get(result.peer)
        if existing is not None:
            fresh = existing.instance != result.instance or existing.name == result.ended
            if not fresh and existing.facts.dialled and self.identity.node < peer:
                return DUPLICATE
        elif peer in self._proving and self.identity.node < peer:
            return DUPLICATE
        if result.role is Role.CLIENT and self._max_clients is not None and existing is None:
            clients = sum(link.facts.role is Role.CLIENT for link in self._links.values())
            if clients >= self._max_clients:
                return HelloRefusal(
                    "too_many_clients", f"The node has its maximum of {self._max_clients} clients.", ASK
                )
        return None

    # -- node_link.LinkOwner

    def established(self, link: NodeLink, result: HandshakeResult) -> None:
        self._in_handshake.discard(link)
        self._forget_proving(link)
        old = self._links.pop(result.peer, None)
        if old is not None:
            old.close("replaced by a new link")
            self._handler_of().link_down(old, "replaced by a new link")
        self._links[result.peer] = link
        self._handler_of().link_up(link)
        for dial in tuple(self._dials.values()):
            if dial.matches(result.peer):
                dial.linked(link)

    def refused(self, link: NodeLink, error: PeerRefused) -> None:
        dial = self._dial_of(link)
        if dial is not None:
            dial.handshake_failed(link, error)

    def refused_peer(self, peer: NodeId | None, address: PeerAddress, code: str) -> None:
        if code != DUPLICATE.code:
            self._handler_of().link_refused(peer, address, code)

    def gone(self, link: NodeLink, reason: str) -> None:
        self._in_handshake.discard(link)
        self._forget_proving(link)
        if not link.established:
            dial = self._dial_of(link)
            if dial is not None:
                dial.handshake_failed(link, reason)
            return
        peer = link.facts.peer
        self._ended[peer] = link.name
        self._ended.move_to_end(peer)
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        if self._links.get(peer) is link:
            del self._links[peer]
            self._handler_of().link_down(link, reason)

    def message(self, link: NodeLink, payload: bytes) -> None:
        self._handler_of().message(link, payload)

    def stream(self, link: NodeLink, kind: StreamKind) -> asyncio.BaseProtocol | None:
        return self._handler_of().stream(link, kind)

    # -- internals

    def _new_link(self, connection: StreamConnection) -> NodeLink:
        return NodeLink(connection, self, asyncio.get_running_loop(), self._clock)

    def _forget_proving(self, link: NodeLink) -> None:
        peer = link.dialled_peer
        if peer is not None and self._proving.get(peer) is link:
            del self._proving[peer]

    def _handler_of(self) -> LinkHandler:
        return cast(LinkHandler, self._handler)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {short(self.identity.node)}: {len(self._links)} links, {len(self._dials)} dials>"
        )


DUPLICATE = HelloRefusal("duplicate", "The two nodes have another link.")
ASK = "Ask another node of the mesh, or raise --max-clients there."
