"""The interface of `net` to other packages: links to peers, and streams on them.

A link exists only after both ends have proved their node key and the mesh secret. A stream is an `asyncio.Transport`
with flow control in both directions: `write` never blocks; the protocol's `pause_writing` and `resume_writing` are
called as the peer's window closes and opens; `pause_reading` makes the peer wait. `quic/transport.py` and `memory.py`
implement it and pass the same tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from meshllm.core.membership.certificates import Certificate, MeshKey, SignedCertificate
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, PeerAddress, Role


class StreamKind(IntEnum):
    """The first byte of a stream. A node refuses a stream of an unknown kind and keeps the link."""

    RPC_TUNNEL = 2
    HTTP_TUNNEL = 4
    LANE_TICKET = 8
    FILES = 9


@dataclass(frozen=True, slots=True)
class Admitted:
    """What an invite gave: the mesh key, the certificate of this node, and the private mesh key with `ADMIT`."""

    key: MeshKey
    certificate: SignedCertificate
    private: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """Facts about an established link. `mesh`: the peer's mesh id; `rtt` of the handshake in seconds; `protocol`: the
    agreed version.

    `certificate`: the peer's. `observed`: this node's address as the peer sees it (only the dialler gets it).
    `admitted`: what a dialler with an invite was given.
    """

    peer: NodeId
    role: Role
    mesh: MeshId
    address: PeerAddress
    dialled: bool
    rtt: float
    protocol: int
    observed: PeerAddress | None = None
    admitted: Admitted | None = field(default=None, repr=False)
    certificate: Certificate | None = None


class Link(Protocol):
    """One authenticated connection to one peer."""

    @property
    def facts(self) -> LinkFacts:
        """Facts from the handshake."""

    @property
    def rtt(self) -> float:
        """Smoothed round trip time in seconds."""

    @property
    def streams(self) -> int:
        """Number of open streams, without the control stream; with 0 the link can be closed without a loss."""

    def open(self, kind: StreamKind, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        """Open a stream. Calls `protocol.connection_made` before it returns. Raises LinkClosed."""

    def send(self, payload: bytes) -> bool:
        """Send a message of at most MAX_MESSAGE_BYTES on the control stream. False: the queue is full and the message
        is dropped."""

    def close(self, reason: str) -> None:
        """Close the link: streams get `connection_lost` with an error, the peer is sent `reason`. Idempotent."""


class LinkHandler(Protocol):
    """Receives the events of all links. Called on the event loop; must not block."""

    def link_up(self, link: Link) -> None:
        """A link is established, dialled or accepted."""

    def link_down(self, link: Link, reason: str) -> None:
        """The link has ended; called once for each `link_up`."""

    def link_refused(self, peer: NodeId | None, address: PeerAddress, code: str) -> None:
        """This node refused a node that dialled it. `peer`: its id if it proved it; `code`: see `HelloRefusal`."""

    def message(self, link: Link, payload: bytes) -> None:
        """A control message arrived: its length is checked, its content is not."""

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """The peer opened a stream: return the protocol that serves it, or None to refuse it."""


class Transport(Protocol):
    """Dials and accepts links.

    There is one link per pair: of two links dialled at once, both nodes keep the one that the node with the smaller id
    dialled.
    """

    async def start(self, handler: LinkHandler) -> int:
        """Listen; return the port. Raises PortTaken."""

    async def dial(self, target: BootstrapAddress) -> Link:
        """Return the link to that peer; dial if there is none (addresses staggered, the first to answer wins).

        Raises PeerUnreachable or PeerRefused within DIAL_SECONDS.
        """

    def link(self, peer: NodeId) -> Link | None:
        """The link to `peer`, or None."""

    def links(self) -> list[Link]:
        """All links."""

    async def close(self, reason: str = "this node is stopping") -> None:
        """Close all links and the listening socket."""


# Limit for a dial; a node that runs answers in a few round trips.
DIAL_SECONDS = 5.0
# QUIC idle timeout: a link without a packet for this long is lost. `core/membership/failure_detector.py` notices
# sooner.
IDLE_SECONDS = 15.0
MAX_MESSAGE_BYTES = 256 << 10
# Largest window of a stream: 25 MB/s at 40 ms.
STREAM_CREDIT_BYTES = 1 << 20
MAX_STREAMS_PER_LINK = 1024
Clock = Callable[[], float]
