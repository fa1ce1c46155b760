"""The links and dials of one node, and what each peer may cost it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from meshllm.core import commands as c
from meshllm.core.membership.certificates import Certificate
from meshllm.core.membership.messages import Ping
from meshllm.core.records import PIN_BYTES, BootstrapAddress, MeshId, NodeId, NodeRecord, PeerAddress, Role
from meshllm.util.backoff import backoff
from meshllm.util.rate_limiter import TokenBucket

T = TypeVar("T")

# A dial without an answer after this time is lost (the transport's own deadline is 5 s).
DIAL_LOST_SECONDS = 15.0
# How long a peer is not dialled after failures in a row; after a refusal it is the cap at once.
DIAL_BACKOFF_BASE_SECONDS = 1.0
DIAL_BACKOFF_CAP_SECONDS = 30.0
# A link that broke sooner than that was a short one; after so many in a row the next dial waits.
SHORT_LINK_SECONDS = 5.0
FREE_SHORT_LINKS = 5
# Failures that are remembered: as many as there are nodes worth dialling at a time.
MAX_FAILURES = 4096
# Dials at a time, so that a table full of dead addresses does not flood the network.
MAX_DIALS = 64
# Requests of a peer: each message has a price in tokens. A peer that keeps the protocol needs about ten a second.
ALLOWANCE_PER_SECOND = 40.0
ALLOWANCE_BURST = 200.0
# Unknown nodes that one peer may introduce unasked: joins come one by one, the start of a mesh all at once.
STRANGERS_PER_SECOND = 200.0
STRANGERS_BURST = 2000.0


class Rng(Protocol):
    """Randomness, with the methods of `random.Random`."""

    def random(self) -> float:
        """0 <= x < 1."""

    def randrange(self, stop: int, /) -> int:
        """0 <= n < stop."""

    def sample(self, population: Sequence[T], k: int, /) -> list[T]:
        """`k` different elements."""


class LinkState:
    """One link. `needed`: when it was last used or wanted; `digest_bits`: of the digest that is not answered yet;
    `wanted`: nodes whose records were requested from the peer and have not come; `member`: the peer's certificate;
    `statements_sent`: when the peer was sent all statements; `name`: of a client, as it says."""

    __slots__ = (
        "address",
        "allowance",
        "dialled",
        "digest_bits",
        "member",
        "mesh",
        "name",
        "needed",
        "role",
        "rtt",
        "statements_sent",
        "strangers",
        "up_at",
        "wanted",
    )

    def __init__(
        self,
        role: Role,
        mesh: MeshId,
        address: PeerAddress,
        rtt: float,
        dialled: bool,
        now: float,
        member: Certificate | None = None,
    ) -> None:
        self.role, self.mesh, self.address, self.rtt, self.dialled = role, mesh, address, rtt, dialled
        self.member = member
        self.name = ""
        self.needed = self.up_at = now
        self.statements_sent = float("-inf")
        self.digest_bits: int | None = None
        self.wanted: set[NodeId] = set()
        self.allowance = TokenBucket(ALLOWANCE_PER_SECOND, ALLOWANCE_BURST, now)
        self.strangers = TokenBucket(STRANGERS_PER_SECOND, STRANGERS_BURST, now)


class LinkTable:
    """All links and dials of one node."""

    def __init__(self, own: NodeId, out: list[c.Command], may_dial: Callable[[bytes], bool]) -> None:
        """Dials are appended to `out`. `may_dial`: whether the node of an id, or of its first bytes, is no expelled
        one."""
        self._own = own
        self._may_dial = may_dial
        self._out = out
        self._up: dict[NodeId, LinkState] = {}
        self._nodes: list[NodeId] = []
        self._dialling: dict[bytes, float] = {}
        # Failures in a row, and the time before which the peer is not dialled again.
        self._failures: dict[bytes, tuple[int, float]] = {}
        self._short: dict[bytes, int] = {}  # short links in a row
        self.duplicate: NodeRecord | None = None  # of another machine with the same identity

    def __getitem__(self, peer: NodeId) -> LinkState:
        return self._up[peer]

    def __contains__(self, peer: NodeId) -> bool:
        return peer in self._up

    def get(self, peer: NodeId) -> LinkState | None:
        """The link to `peer`, or None."""
        return self._up.get(peer)

    def items(self) -> Iterator[tuple[NodeId, LinkState]]:
        """All links."""
        return iter(list(self._up.items()))

    @property
    def nodes(self) -> Sequence[NodeId]:
        """Linked peers that are nodes, not clients."""
        return self._nodes

    def clients(self) -> list[tuple[NodeId, LinkState]]:
        """The links to clients."""
        if len(self._up) == len(self._nodes):
            return []
        return [(peer, link) for peer, link in self._up.items() if link.role is Role.CLIENT]

    def up(self, peer: NodeId, state: LinkState) -> None:
        """Add a link; its dial and the failures before it are forgotten."""
        self._up[peer] = state
        self._nodes = [node for node, link in self._up.items() if link.role is Role.NODE]
        self._dialling.pop(peer[:PIN_BYTES], None)
        self._failures.pop(peer[:PIN_BYTES], None)

    def _broke(self, peer: NodeId, link: LinkState, now: float) -> None:
        """A link broke. After several short ones in a row the next dial waits: two machines with one identity, which
        replace each other's link, would otherwise do so several times a second."""
        key = peer[:PIN_BYTES]
        if self.duplicate is not None:
            # The other machine, whose link replaced this one, can learn of this one, and step back if it is the copy.
            self._failures[key] = (0, now + SHORT_LINK_SECONDS)
            return
        if now - link.up_at >= SHORT_LINK_SECONDS:
            self._short.pop(key, None)
            return
        count = self._short[key] = self._short.pop(key, 0) + 1
        if count > FREE_SHORT_LINKS:
            delay = backoff(count - FREE_SHORT_LINKS, base=DIAL_BACKOFF_BASE_SECONDS, cap=DIAL_BACKOFF_CAP_SECONDS)
            self._failures[key] = (count, now + delay)
        if len(self._short) > MAX_FAILURES:
            del self._short[next(iter(self._short))]

    def down(self, peer: NodeId, *, broke_at: float | None = None) -> LinkState | None:
        """Remove a link, which broke (`broke_at`) or was closed here; returns its state, or None if there was none."""
        state = self._up.pop(peer, None)
        if state is not None and broke_at is not None:
            self._broke(peer, state, broke_at)
        self._nodes = [node for node, link in self._up.items() if link.role is Role.NODE]
        return state

    def dialling(self, pin: bytes, now: float) -> bool:
        """Whether a dial to that peer is under way."""
        begun = self._dialling.get(pin[:PIN_BYTES])
        return begun is not None and now - begun < DIAL_LOST_SECONDS

    def dial(self, target: BootstrapAddress, now: float, *, respect_backoff: bool = True) -> bool:
        """Dial `target`. Returns False, and does nothing, if the target is linked, being dialled, this node itself or
        without an address; with `respect_backoff` also during its backoff or above the limit of dials."""
        key = target.prefix
        if not target.addresses or key == self._own[: len(key)] or self.dialling(key, now):
            return False
        if not self._may_dial(key):
            return False
        if target.node is not None and target.node in self._up:
            return False
        if respect_backoff and (now < self._failures.get(key, (0, now))[1] or len(self._dialling) >= MAX_DIALS):
            self._sweep(now)
            return False
        self._dialling[key] = now
        self._out.append(c.DialPeer(target))
        return True

    def failed(self, target: BootstrapAddress, now: float, *, final: bool, local: bool) -> None:
        """A dial failed. `final`: the peer refused this node; `local`: a limit of this node prevented the dial."""
        key = target.prefix
        self._dialling.pop(key, None)
        count, until = self._failures.pop(key, (0, now))
        if local:
            # Not a failure of the peer: its count stays, and the next dial waits only for the load to pass.
            self._failures[key] = (count, max(until, now + DIAL_BACKOFF_BASE_SECONDS))
        elif final:
            self._failures[key] = (count + 1, now + DIAL_BACKOFF_CAP_SECONDS)
        else:
            delay = backoff(count, base=DIAL_BACKOFF_BASE_SECONDS, cap=DIAL_BACKOFF_CAP_SECONDS)
            self._failures[key] = (count + 1, now + delay)
        if len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def _sweep(self, now: float) -> None:
        for key in [key for key, begun in self._dialling.items() if now - begun >= DIAL_LOST_SECONDS]:
            del self._dialling[key]


class LinkProbes:
    """The part of `failure_detector.ProbeIO` that acts on links."""

    def __init__(self, links: LinkTable, out: list[c.Command]) -> None:
        """Pings are appended to `out`."""
        self._links = links
        self._out = out

    def rtt(self, node: NodeId) -> float | None:
        """The round-trip time of the link to `node` in seconds; None without a link."""
        link = self._links.get(node)
        return link.rtt if link is not None else None

    def ping(self, node: NodeId, number: int) -> None:
        """Send a ping over the link to `node`."""
        self._out.append(c.Send(node, Ping(number)))
