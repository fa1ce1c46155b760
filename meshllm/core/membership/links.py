"""The links of a node as its core sees them: who is connected, who is being dialled, and what each may cost us.

Law: a peer is dialled once at a time, and after a failure not before its backoff is over; what a peer makes us do
comes out of an allowance of its own link.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from meshllm.core import commands as c
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, PeerAddress, Role
from meshllm.util.backoff import backoff
from meshllm.util.rate_limiter import TokenBucket

T = TypeVar("T")

# A dial that has not been answered after this was lost (the transport's own deadline is 5 s).
DIAL_LOST_SECONDS = 15.0
# A peer whose refusal is final, or that failed so often, is left alone for so long.
DIAL_BACKOFF_BASE_SECONDS = 1.0
DIAL_BACKOFF_CAP_SECONDS = 30.0
# Failures remembered: as many as there can be nodes worth dialling at a time.
MAX_FAILURES = 4096
# Dials under way at a time, whatever they are for; a table full of dead addresses makes no storm.
MAX_DIALS = 64
# How many bytes of a pin identify it: invites carry so many of the id.
PIN_BYTES = 16
# Requests of a peer: each message has a price in tokens. A peer in step costs about ten a second.
ALLOWANCE_PER_SECOND = 40.0
ALLOWANCE_BURST = 200.0
# Nodes nobody here knew, told by one peer without having been asked: joins come one by one, a start of all at once.
STRANGERS_PER_SECOND = 200.0
STRANGERS_BURST = 2000.0


class Rng(Protocol):
    """Randomness, as `random.Random` has it."""

    def random(self) -> float:
        """0 <= x < 1."""

    def randrange(self, stop: int, /) -> int:
        """0 <= n < stop."""

    def sample(self, population: Sequence[T], k: int, /) -> list[T]:
        """`k` different ones."""


class LinkState:
    """One link. `needed` is when it was last wanted; `digest_bits` of the digest sent and not answered yet."""

    __slots__ = (
        "address",
        "allowance",
        "dialled",
        "digest_bits",
        "mesh",
        "needed",
        "role",
        "rtt",
        "strangers",
        "wanted",
    )

    def __init__(self, role: Role, mesh: MeshId, address: PeerAddress, rtt: float, dialled: bool, now: float) -> None:
        self.role, self.mesh, self.address, self.rtt, self.dialled = role, mesh, address, rtt, dialled
        self.needed = now
        self.digest_bits: int | None = None
        self.wanted: set[NodeId] = set()
        self.allowance = TokenBucket(ALLOWANCE_PER_SECOND, ALLOWANCE_BURST, now)
        self.strangers = TokenBucket(STRANGERS_PER_SECOND, STRANGERS_BURST, now)


class LinkTable:
    """All links and dials of one node."""

    def __init__(self, own: NodeId, out: list[c.Command]) -> None:
        """Dials are put in `out`."""
        self._own = own
        self._out = out
        self._up: dict[NodeId, LinkState] = {}
        self._nodes: list[NodeId] = []
        self._dialling: dict[bytes, float] = {}
        self._failures: dict[bytes, tuple[int, float]] = {}

    def __getitem__(self, peer: NodeId) -> LinkState:
        return self._up[peer]

    def __contains__(self, peer: NodeId) -> bool:
        return peer in self._up

    def get(self, peer: NodeId) -> LinkState | None:
        """The link to `peer`, if there is one."""
        return self._up.get(peer)

    def items(self) -> Iterator[tuple[NodeId, LinkState]]:
        """All links."""
        return iter(list(self._up.items()))

    @property
    def nodes(self) -> Sequence[NodeId]:
        """Linked peers that are no clients."""
        return self._nodes

    @property
    def clients(self) -> int:
        """How many clients are linked."""
        return len(self._up) - len(self._nodes)

    def up(self, peer: NodeId, state: LinkState) -> None:
        """A link is there."""
        self._up[peer] = state
        self._nodes = [node for node, link in self._up.items() if link.role is Role.NODE]
        self._dialling.pop(peer[:PIN_BYTES], None)
        self._failures.pop(peer[:PIN_BYTES], None)

    def down(self, peer: NodeId) -> LinkState | None:
        """It is gone; what it was, or None if there was none."""
        state = self._up.pop(peer, None)
        self._nodes = [node for node, link in self._up.items() if link.role is Role.NODE]
        return state

    def dialling(self, pin: bytes, now: float) -> bool:
        """Whether that peer is being dialled."""
        begun = self._dialling.get(pin[:PIN_BYTES])
        return begun is not None and now - begun < DIAL_LOST_SECONDS

    def dial(self, way: BootstrapAddress, now: float, *, patient: bool = True) -> bool:
        """Dial it. False if it is linked, being dialled, ourselves or without address; if `patient`, in its backoff."""
        pin = way.pin[:PIN_BYTES]
        if not way.addresses or pin == self._own[: len(pin)] or self.dialling(pin, now):
            return False
        if NodeId(way.pin) in self._up:
            return False
        if patient and (now < self._failures.get(pin, (0, now))[1] or len(self._dialling) >= MAX_DIALS):
            self._sweep(now)
            return False
        self._dialling[pin] = now
        self._out.append(c.DialPeer(way))
        return True

    def failed(self, way: BootstrapAddress, now: float, *, final: bool) -> None:
        """That dial led nowhere."""
        pin = way.pin[:PIN_BYTES]
        self._dialling.pop(pin, None)
        count = self._failures.pop(pin, (0, now))[0] + 1
        delay = backoff(count - 1, base=DIAL_BACKOFF_BASE_SECONDS, cap=DIAL_BACKOFF_CAP_SECONDS)
        self._failures[pin] = (count, now + (DIAL_BACKOFF_CAP_SECONDS if final else delay))
        if len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]

    def _sweep(self, now: float) -> None:
        for pin in [pin for pin, begun in self._dialling.items() if now - begun >= DIAL_LOST_SECONDS]:
            del self._dialling[pin]
