"""The connections of a server: how many there may be, of which callers, and the memory of their bodies.

Invariants: callers on other machines cannot use up the connections or the memory, neither all of them together nor one
address of them; those without a key, and those whose head has not come, have few. A new connection is admitted in the
place of the oldest idle one of the address that has most; it is refused only if none is idle.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from meshllm.web.http.access_control import CallerKind, is_loopback, network_of
from meshllm.web.http.parser import MAX_BODY_BYTES, BodyBudget

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 2048
# Of MAX_CONNECTIONS: connections of callers on other machines, with the key and without, in all and of one address.
KEYED_SHARE = 3 / 8
KEYLESS_SHARE = 1 / 8
ADDRESS_SHARE_OF_KEYED = 1 / 2
ADDRESS_SHARE_OF_KEYLESS = 1 / 8
# Bodies of callers on other machines with the key, all together and of one address. Without it none is read.
MAX_REMOTE_BODIES_BYTES = 256 << 20
MAX_ADDRESS_BODIES_BYTES = 128 << 20
# File descriptors left to the rest of the process: engines, links, files. A request may take one for its target, too.
RESERVED_FILES = 1 / 2


class PooledConnection(Protocol):
    """What a set of connections knows of each."""

    peer: str
    kind: CallerKind
    # The connections of its address and class, the least recently used first; kept by the set.
    neighbours: dict[Any, None]

    @property
    def idle(self) -> bool:
        """Whether it may be closed: no request is in progress."""

    def sweep(self, now: float) -> None:
        """Enforce the time limits."""

    def retire(self) -> None:
        """Close as soon as the response in progress is complete."""

    def stop(self) -> None:
        """End the response in progress with an error, and close."""

    def abort(self) -> None:
        """Close now."""


C = TypeVar("C", bound=PooledConnection)


class ConnectionSet(Generic[C]):
    """All connections of one peer, and the memory of their bodies. All are of one class and one address."""

    def __init__(self, wake: Callable[[], None], bodies: BodyBudget | None = None, limit: int | None = None) -> None:
        """`wake` is called for each new connection: from then on `sweep` must be called. `limit`: of connections."""
        self._wake = wake
        self._limit = limit
        self.live: set[C] = set()
        self.bodies = bodies if bodies is not None else BodyBudget()
        self.empty = asyncio.Event()
        self.empty.set()

    @property
    def limit(self) -> int:
        """The most connections."""
        return MAX_CONNECTIONS if self._limit is None else self._limit

    def add(self, connection: C) -> bool:
        """Register a new connection. False: there are too many, and it must be closed."""
        self.live.add(connection)
        self.empty.clear()
        self._wake()
        return len(self.live) <= self.limit

    def remove(self, connection: C) -> None:
        """Unregister a closed connection."""
        self.live.discard(connection)
        if not self.live:
            self.empty.set()

    def reclassify(self, connection: C, kind: CallerKind) -> bool:
        """The caller is of another class. False: that class has too many connections."""
        connection.kind = kind
        return True

    def used(self, connection: C) -> None:
        """A request on the connection is complete."""

    def bodies_of(self, connection: C) -> BodyBudget:
        """The budget for bodies of the connection."""
        return self.bodies

    def sweep(self, now: float) -> None:
        """Enforce the time limits. Called about once a second while there are connections."""
        for connection in list(self.live):
            try:
                connection.sweep(now)
            except Exception:
                # A defect in one request's processing: the other connections still need their time limits.
                log.exception("sweeping a connection failed")
                connection.abort()


@dataclass(slots=True)
class _Share(Generic[C]):
    """The connections of one class by address, the least recently used first, and their limits."""

    limit: int
    address_limit: int
    count: int = 0
    addresses: dict[str, dict[C, None]] = field(default_factory=dict)


class SharedConnections(ConnectionSet[C]):
    """The connections of all callers of the API, with a share for each class."""

    def __init__(self, wake: Callable[[], None], limit: int | None = None) -> None:
        super().__init__(wake, None, connection_limit() if limit is None else limit)
        keyed, keyless = int(self.limit * KEYED_SHARE), int(self.limit * KEYLESS_SHARE)
        self._shares: dict[CallerKind, _Share[C]] = {
            CallerKind.LOCAL: _Share(sys.maxsize, sys.maxsize),  # bounded by the limit of all
            CallerKind.KEYED: _Share(keyed, max(1, int(keyed * ADDRESS_SHARE_OF_KEYED))),
            CallerKind.KEYLESS: _Share(keyless, max(1, int(keyless * ADDRESS_SHARE_OF_KEYLESS))),
        }
        self._remote_bodies = BodyBudget(limit=MAX_REMOTE_BODIES_BYTES, parent=self.bodies)
        self._address_bodies: dict[str, BodyBudget] = {}
        self._full = False

    def add(self, connection: C) -> bool:
        super().add(connection)
        # Until its head says more. A proxy on this machine is one address, too.
        connection.kind = CallerKind.LOCAL if is_loopback(connection.peer) else CallerKind.KEYLESS
        return self._place(connection)

    def remove(self, connection: C) -> None:
        super().remove(connection)
        self._take_out(connection)
        if self._full and len(self.live) < self.limit // 2:
            self._full = False

    def reclassify(self, connection: C, kind: CallerKind) -> bool:
        self._take_out(connection)
        connection.kind = kind
        return self._place(connection)

    def used(self, connection: C) -> None:
        neighbours = connection.neighbours
        if len(neighbours) > 1 and connection in neighbours:
            del neighbours[connection]
            neighbours[connection] = None

    def bodies_of(self, connection: C) -> BodyBudget:
        if connection.kind is CallerKind.LOCAL:
            return self.bodies
        address = network_of(connection.peer)
        budget = self._address_bodies.get(address)
        if budget is None:
            for known in [known for known, held in self._address_bodies.items() if not held.held]:
                del self._address_bodies[known]
            budget = self._address_bodies[address] = BodyBudget(
                limit=max(MAX_ADDRESS_BODIES_BYTES, MAX_BODY_BYTES), parent=self._remote_bodies
            )
        return budget

    def _place(self, connection: C) -> bool:
        """Count a connection in its class; close idle ones while there are too many. False: none is idle."""
        share, address = self._shares[connection.kind], network_of(connection.peer)
        own = share.addresses.setdefault(address, {})
        own[connection] = None
        connection.neighbours = own
        share.count += 1
        return (
            (len(own) <= share.address_limit or self._evict(share, address, connection))
            and (share.count <= share.limit or self._evict_largest((share,), connection))
            and (self._total <= self.limit or self._evict_any(connection))
        )

    @property
    def _total(self) -> int:
        return sum(share.count for share in self._shares.values())

    def _evict_any(self, new: C) -> bool:
        if not self._full:
            self._full = True
            log.warning(
                "the API has %d connections, the most it takes: idle ones are closed for new ones; a higher limit of "
                "open files (ulimit -n) allows up to %d", self.limit, MAX_CONNECTIONS
            )  # fmt: skip
        remote = self._shares[CallerKind.KEYLESS], self._shares[CallerKind.KEYED]
        return self._evict_largest(remote, new) or self._evict_largest((self._shares[CallerKind.LOCAL],), new)

    def _evict_largest(self, shares: tuple[_Share[C], ...], new: C) -> bool:
        found = [(len(held), share, address) for share in shares for address, held in share.addresses.items()]
        found.sort(key=lambda each: each[0], reverse=True)
        return any(self._evict(share, address, new) for _, share, address in found)

    def _evict(self, share: _Share[C], address: str, new: C) -> bool:
        """Close the idle connection of `address` that was used least recently, but not `new`. False: none is idle."""
        for connection in share.addresses[address]:
            if connection is not new and connection.idle:
                self._take_out(connection)
                connection.abort()
                return True
        return False

    def _take_out(self, connection: C) -> None:
        share, address = self._shares[connection.kind], network_of(connection.peer)
        own = share.addresses.get(address)
        if own is None or connection not in own:
            return
        del own[connection]
        share.count -= 1
        if not own:
            del share.addresses[address]


def connection_limit() -> int:
    """The most connections that the limit of open files allows. Beyond it a new caller would wait unanswered."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, int(soft * (1 - RESERVED_FILES))))


def raise_file_limit() -> None:
    """Raise the soft limit of open files to what MAX_CONNECTIONS need, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = int(MAX_CONNECTIONS / (1 - RESERVED_FILES))
    wanted = need if hard == resource.RLIM_INFINITY else min(need, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.warning("the limit of open files stays %d: %s", soft, error)
