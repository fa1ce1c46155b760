"""Places for unauthenticated connections. Pure: time is an argument.

Invariants: a new connection is admitted in the place of the oldest mute one (no byte of a hello has come) of the
address that holds most, so that a flood keeps no node out; known addresses (members of the mesh) have places and a rate
that others cannot use up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from meshllm.util.rate_limiter import TokenBucket

# Unauthenticated connections. A handshake takes about 5 ms of CPU and 50 KiB while it lasts.
MAX_UNAUTHENTICATED = 64
# Of these, places for known addresses only.
RESERVED_FOR_KNOWN = 16
# The same from one address (IPv6: one /64). Many nodes may share an address, but they do not all connect in one second.
MAX_UNAUTHENTICATED_PER_ADDRESS = 24
# From so many on, an address must be proved (Retry), and a connection without a hello after MUTE_SECONDS is closed.
RETRY_ABOVE = 16
MUTE_SECONDS = 1.5
# New connections from one address: rate and burst; and from all unknown addresses, for the CPU's sake.
NEW_CONNECTIONS_PER_SECOND = 20.0
NEW_CONNECTIONS_BURST = 60.0
NEW_UNKNOWN_PER_SECOND = 100.0
NEW_UNKNOWN_BURST = 200.0
MAX_ADDRESSES_KNOWN = 1024


class Pending(Protocol):
    """An unauthenticated connection."""

    @property
    def mute(self) -> bool:
        """Whether no byte of its hello has come."""

    def evict(self, reason: str) -> None:
        """Close it without a packet. Must lead to `HandshakeAdmission.remove`."""


R = TypeVar("R", bound=Pending)


@dataclass(frozen=True, slots=True)
class _Place:
    address: str
    known: bool
    since: float


class HandshakeAdmission(Generic[R]):
    """The unauthenticated connections, the oldest first."""

    def __init__(self, now: float) -> None:
        self.known: Callable[[str], bool] = lambda address: False
        self._places: dict[R, _Place] = {}
        self._unknown = TokenBucket(NEW_UNKNOWN_PER_SECOND, NEW_UNKNOWN_BURST, now)
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def crowded(self) -> bool:
        """Whether a new connection must prove its address."""
        return len(self._places) >= RETRY_ABOVE

    def admit(self, address: str, now: float) -> bool:
        """Whether a connection from `address` may be made now; others may be closed for it."""
        if not self._bucket(address, now).take(now):
            return False
        known = self.known(address)
        if not known and not self._unknown.take(now):
            return False
        if self.crowded:
            self._close_mute(now)
        held = [place for place in self._places.values() if place.address == address]
        if len(held) >= MAX_UNAUTHENTICATED_PER_ADDRESS:
            return self._evict((address,))
        if not known and sum(not place.known for place in self._places.values()) >= self._places_for_unknown:
            return self._evict(self._largest(known=False))
        if len(self._places) >= MAX_UNAUTHENTICATED:
            return self._evict(self._largest(known=False)) or self._evict(self._largest(known=True))
        return True

    def add(self, connection: R, address: str, now: float) -> None:
        """An admitted connection was made."""
        self._places[connection] = _Place(address, self.known(address), now)

    def remove(self, connection: R) -> None:
        """The connection is authenticated or closed."""
        self._places.pop(connection, None)

    @property
    def _places_for_unknown(self) -> int:
        return max(1, MAX_UNAUTHENTICATED - RESERVED_FOR_KNOWN)

    def _largest(self, *, known: bool) -> tuple[str, ...]:
        """The addresses by how many connections they have, the largest first."""
        counts: dict[str, int] = {}
        for place in self._places.values():
            if place.known == known:
                counts[place.address] = counts.get(place.address, 0) + 1
        return tuple(sorted(counts, key=lambda address: -counts[address]))

    def _evict(self, addresses: tuple[str, ...]) -> bool:
        """Close the oldest mute connection of the first of `addresses` that has one. False: none is mute."""
        for address in addresses:
            for connection, place in self._places.items():
                if place.address == address and connection.mute:
                    del self._places[connection]
                    connection.evict("too many handshakes at once")
                    return True
        return False

    def _close_mute(self, now: float) -> None:
        for connection, place in tuple(self._places.items()):
            if now - place.since < MUTE_SECONDS:
                break
            if connection.mute:
                self.remove(connection)
                connection.evict(f"no hello within {MUTE_SECONDS} s")

    def _bucket(self, address: str, now: float) -> TokenBucket:
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = TokenBucket(NEW_CONNECTIONS_PER_SECOND, NEW_CONNECTIONS_BURST, now)
            if len(self._buckets) > MAX_ADDRESSES_KNOWN:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(address)
        return bucket
