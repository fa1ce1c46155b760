"""What the rest of the program sees of other machines: links, and streams on them.

Law: a link exists only once both ends have proved who they are and that they know the mesh secret; nothing of a peer
is read before. A stream is an `asyncio.Transport` with a protocol of asyncio on top, credit both ways underneath: its
`write` never blocks, the protocol's `pause_writing`/`resume_writing` are called when the peer takes no more, and
`pause_reading` holds the peer back. `quic.py` and `memory.py` implement the same and pass the same tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from meshllm.core.records import BootstrapAddress, MeshId, NodeId, PeerAddress, Role


class StreamKind(IntEnum):
    """The first byte of a stream. A node refuses a stream of an unknown kind and keeps the link."""

    RPC_TUNNEL = 2
    HTTP_TUNNEL = 4
    LANE_TICKET = 8
    FILES = 9


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """Who is at the other end. `mesh` is the id the peer holds; `rtt` of the handshake in seconds; `protocol` agreed.

    `observed` is where the peer sees us (behind a NAT: not where we bound); only the dialler is told. `secret` is the
    mesh's, given to who came by an invite that expires.
    """

    peer: NodeId
    role: Role
    mesh: MeshId
    address: PeerAddress
    dialled: bool
    rtt: float
    protocol: int
    observed: PeerAddress | None = None
    secret: bytes | None = field(default=None, repr=False)


class Link(Protocol):
    """One authenticated connection to one peer."""

    @property
    def facts(self) -> LinkFacts:
        """Who is there."""

    @property
    def rtt(self) -> float:
        """The smoothed round trip now, in seconds."""

    @property
    def streams(self) -> int:
        """Open streams, not counting the control stream: 0 means that closing disturbs nobody."""

    def open(self, kind: StreamKind, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        """A new stream. `protocol.connection_made` is called before this returns. Raises LinkClosed."""

    def send(self, payload: bytes) -> bool:
        """One message on the control stream, at most MAX_MESSAGE_BYTES. False: the peer reads too slowly; dropped."""

    def close(self, reason: str) -> None:
        """End it: every stream is lost (`connection_lost` with an error), the peer is told `reason`. Idempotent."""


class LinkHandler(Protocol):
    """Who hears of links. Called on the event loop; must not block."""

    def link_up(self, link: Link) -> None:
        """A link is there, dialled or accepted. A second one to the same peer never gets this far (see `Transport`)."""

    def link_down(self, link: Link, reason: str) -> None:
        """It is gone; exactly once per `link_up`."""

    def message(self, link: Link, payload: bytes) -> None:
        """A control message (bounded, otherwise unchecked)."""

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """The peer opens a stream: the protocol that serves it, or None to refuse."""


class Transport(Protocol):
    """Dials and accepts. Of two links that two nodes dial to each other at once, both keep the one that the node with
    the smaller id dialled, so that there is one link per pair."""

    async def start(self, handler: LinkHandler) -> int:
        """Listen; returns the port. Raises PortTaken."""

    async def dial(self, way: BootstrapAddress) -> Link:
        """A link to that peer: the one that is there, or a new one (addresses nearly at once, first to answer wins).

        Raises PeerUnreachable or PeerRefused within DIAL_SECONDS, whatever the addresses do.
        """

    def link(self, peer: NodeId) -> Link | None:
        """The link to `peer`, if there is one."""

    def links(self) -> list[Link]:
        """All links."""

    async def close(self, reason: str = "this node stops") -> None:
        """End all links and stop listening; nothing is left."""


# Everything is tried within this; a host that is up answers in a few round trips.
DIAL_SECONDS = 5.0
# A link without an answer for so long is dead to us (QUIC's idle timeout; the core notices sooner).
IDLE_SECONDS = 15.0
MAX_MESSAGE_BYTES = 256 << 10
# Unread bytes a stream may have under way: enough for 25 MB/s at 40 ms.
STREAM_CREDIT_BYTES = 1 << 20
MAX_STREAMS_PER_LINK = 1024
Clock = Callable[[], float]
