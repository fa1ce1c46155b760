"""What every transport does, whatever carries it: one link per peer, who may come in, dials that are shared.

Law: there is one link per peer, and `link_up`/`link_down` are told in pairs. Of two links to a peer the acceptor
decides which one stays, and the dialler follows, by these rules in this order: a peer that was started anew, or that
says it saw the old link end, gets a new link; if both have dialled, the link of the node with the smaller id stays.
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

# A pin is a whole node id or the first half of one (invites carry the half: 128 bits).
PIN_BYTES = 16
# Dials at a time; each costs a few packets a second until it ends.
MAX_DIALS = 64
# The names of ended links are remembered for so many peers, 64 bytes each; forgetting one costs a failed dial.
MAX_ENDED = 4096


class NodeTransport(ABC):
    """`base.Transport` without the sockets. `credentials` is asked at each handshake, so that they may change."""

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
        self._greeting: set[NodeLink] = set()
        self._proved: dict[NodeId, NodeLink] = {}
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

    async def dial(self, way: BootstrapAddress) -> Link:
        if len(way.pin) not in (PIN_BYTES, NODE_ID_BYTES):
            raise PeerRefused("The way in does not say which node is there.", reason="bad_way")
        if self.identity.node.startswith(way.pin):
            raise PeerRefused("That is this very node.", reason="itself")
        if not self._running:
            raise LinkClosed("This node stops.")
        key = way.pin[:PIN_BYTES]
        existing = next((link for node, link in self._links.items() if node.startswith(way.pin)), None)
        if existing is not None:
            return existing
        dial = self._dials.get(key)
        if dial is None:
            if len(self._dials) >= MAX_DIALS:
                raise DialLimitReached(
                    f"This node is already dialling {MAX_DIALS} peers.", advice="Retry in a few seconds."
                )
            loop = asyncio.get_running_loop()
            dial = self._dials[key] = PendingDial(way, self, loop, self._dialled)
        return await asyncio.shield(dial.future)

    def link(self, peer: NodeId) -> Link | None:
        return self._links.get(peer)

    def links(self) -> list[Link]:
        return list(self._links.values())

    async def close(self, reason: str = "this node stops") -> None:
        self._running = False
        for dial in tuple(self._dials.values()):
            dial.drop(PeerUnreachable("This node stops."))
        for link in (*self._links.values(), *self._greeting):
            link.close(reason)
        await self._stop_listening()
        await asyncio.sleep(0)  # `connection_lost` of the streams is called by now

    def _dialled(self, dial: PendingDial) -> None:
        self._dials.pop(dial.way.pin[:PIN_BYTES], None)

    # -- what a kind of transport adds

    @abstractmethod
    async def _listen(self) -> int:
        """Begin to accept; gives the port. Raises PortTaken."""

    @abstractmethod
    async def _stop_listening(self) -> None:
        """Nothing is left."""

    @abstractmethod
    def attempt(self, address: PeerAddress, dial: PendingDial) -> Attempt:
        """See `dialling.Dialler`."""

    @abstractmethod
    def _attach(self, attempt: Attempt, make: Callable[[StreamConnection], NodeLink]) -> NodeLink:
        """The link on the carrier of an attempt that is ready."""

    # -- dialling

    def greet(self, attempt: Attempt, peer: NodeId, seconds: float) -> NodeLink:
        ended = self._ended.get(peer, b"")
        handshake = DiallerHandshake(self.identity, peer, self._credentials(), instance=self._instance, ended=ended)
        link = self._attach(attempt, self._new_link)
        self._greeting.add(link)
        link.begin(handshake, seconds)
        return link

    def proving(self, link: NodeLink) -> bool:
        dial = self._dial_of(link)
        peer = link.greeted
        if dial is None or peer is None or peer in self._links:
            return False
        self._proved[peer] = link
        return True

    def _dial_of(self, link: NodeLink) -> PendingDial | None:
        return next((dial for dial in self._dials.values() if dial.greeted is link), None)

    # -- accepting

    def accept(self, carrier: StreamConnection) -> NodeLink:
        """Somebody comes in on `carrier`."""
        link = self._new_link(carrier)
        handshake = AcceptorHandshake(
            self.identity,
            self._credentials(),
            instance=self._instance,
            observed=carrier.address,
            wall_clock=self._wall_clock,
            admit=self._admit,
        )
        self._greeting.add(link)
        link.begin(handshake, HANDSHAKE_SECONDS)
        return link

    def _admit(self, finding: HandshakeResult) -> HelloRefusal | None:
        """Whether a peer that has proved itself may stay."""
        peer, existing = finding.peer, self._links.get(finding.peer)
        if existing is not None:
            fresh = existing.instance != finding.instance or existing.name == finding.ended
            if not fresh and existing.facts.dialled and self.identity.node < peer:
                return DUPLICATE
        elif peer in self._proved and self.identity.node < peer:
            return DUPLICATE
        if finding.role is Role.CLIENT and self._max_clients is not None and existing is None:
            clients = sum(link.facts.role is Role.CLIENT for link in self._links.values())
            if clients >= self._max_clients:
                return HelloRefusal(
                    "too_many_clients", f"The node takes {self._max_clients} clients, and has them.", ASK
                )
        return None

    # -- links.LinkOwner

    def established(self, link: NodeLink, finding: HandshakeResult) -> None:
        self._greeting.discard(link)
        self._forget_proof(link)
        old = self._links.pop(finding.peer, None)
        if old is not None:
            old.close("replaced by a new link")
            self._handler_of().link_down(old, "replaced by a new link")
        self._links[finding.peer] = link
        self._handler_of().link_up(link)
        for dial in tuple(self._dials.values()):
            if dial.matches(finding.peer):
                dial.linked(link)

    def refused(self, link: NodeLink, error: PeerRefused) -> None:
        dial = self._dial_of(link)
        if dial is not None:
            dial.greeting_failed(link, error)

    def gone(self, link: NodeLink, reason: str) -> None:
        self._greeting.discard(link)
        self._forget_proof(link)
        if not link.established:
            dial = self._dial_of(link)
            if dial is not None:
                dial.greeting_failed(link, reason)
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

    # -- inside

    def _new_link(self, carrier: StreamConnection) -> NodeLink:
        return NodeLink(carrier, self, asyncio.get_running_loop(), self._clock)

    def _forget_proof(self, link: NodeLink) -> None:
        peer = link.greeted
        if peer is not None and self._proved.get(peer) is link:
            del self._proved[peer]

    def _handler_of(self) -> LinkHandler:
        return cast(LinkHandler, self._handler)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {short(self.identity.node)}: {len(self._links)} links, {len(self._dials)} dials>"
        )


DUPLICATE = HelloRefusal("duplicate", "There is a link between the two nodes already.")
ASK = "Ask another node of the mesh, or raise --max-clients there."
