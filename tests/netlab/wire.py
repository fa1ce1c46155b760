"""The lab's wire: when and where a packet arrives.

Pure: time is an argument, randomness comes from a seed. A direction between two hosts is a `Path` with delay, jitter,
loss, a rate with a bounded queue, and blocked protocols; packets of a path keep their order.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tests.netlab import packets
from tests.netlab.nat import Nat

# About the buffer of a home router; what exceeds it is lost.
QUEUE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Settings:
    """One direction. Seconds, a fraction, bytes per second (None: unlimited), bytes; `blocked` names protocols."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    queue: int = QUEUE_BYTES
    cut: bool = False
    blocked: Sequence[str] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.blocked) - set(packets.PROTOCOLS):
            raise ValueError(f"no such protocol: {unknown}")


@dataclass(slots=True)
class Counts:
    """What happened to packets: each counts in exactly one field."""

    passed: int = 0
    lost: int = 0
    cut: int = 0
    blocked: int = 0
    overflowed: int = 0


class Path:
    """One direction between two hosts."""

    def __init__(self, seed: str) -> None:
        self.settings = Settings()
        self.counts = Counts()
        self._random = random.Random(seed)
        self._sent_until = 0.0
        self._last_due = 0.0

    def due(self, protocol: int, size: int, now: float) -> float | None:
        """When a packet of `size` bytes sent `now` arrives; None: it is lost."""
        settings, counts = self.settings, self.counts
        # Drawn for every packet, so that other settings do not change which ones are lost.
        loses, late = self._random.random(), self._random.random()
        if settings.cut:
            counts.cut += 1
        elif any(packets.PROTOCOLS[name] == protocol for name in settings.blocked):
            counts.blocked += 1
        elif loses < settings.loss:
            counts.lost += 1
        elif settings.rate is not None and (self._sent_until - now) * settings.rate + size > settings.queue:
            counts.overflowed += 1
        else:
            counts.passed += 1
            leaves = now
            if settings.rate is not None:
                leaves = self._sent_until = max(now, self._sent_until) + size / settings.rate
            self._last_due = max(self._last_due, leaves + settings.delay + late * settings.jitter)
            return self._last_due
        return None


@dataclass(slots=True)
class _Host:
    name: str
    address: int
    behind: str | None


class Wire:
    """All hosts, routers and paths. `deliver(host, packet)` is called when a packet arrives."""

    def __init__(self, seed: int, deliver: Callable[[str, bytes], None]) -> None:
        self._seed = seed
        self._deliver = deliver
        self._hosts: dict[str, _Host] = {}
        self._at: dict[tuple[str | None, int], _Host] = {}
        self._nats: dict[str, Nat] = {}
        self._nat_at: dict[int, str] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._under_way: list[tuple[float, int, str, bytes]] = []
        self._number = 0
        # Packets without a valid destination or sender, or not IPv4.
        self.strange = 0

    def add_nat(self, name: str, kind: str, outside: str, **options: float) -> None:
        """A router with an outside address."""
        nat = Nat(kind, packets.number(outside), **options)
        self._nats[name] = nat
        self._nat_at[nat.outside] = name

    def nat(self, name: str) -> Nat:
        """That router."""
        return self._nats[name]

    def place(self, name: str, address: str, behind: str | None) -> None:
        """A host, new or with a new address; `behind` a router or in the open."""
        if (old := self._hosts.pop(name, None)) is not None:
            del self._at[old.behind, old.address]
        if behind is not None and behind not in self._nats:
            raise ValueError(f"no such NAT: {behind}")
        host = _Host(name, packets.number(address), behind)
        if (behind, host.address) in self._at or (behind is None and host.address in self._nat_at):
            raise ValueError(f"{address} is taken")
        self._hosts[name] = self._at[behind, host.address] = host

    def path(self, sender: str, receiver: str) -> Path:
        """The direction from one host to another."""
        if (path := self._paths.get((sender, receiver))) is None:
            for name in (sender, receiver):
                if name not in self._hosts:
                    raise ValueError(f"no such host: {name}")
            path = self._paths[sender, receiver] = Path(f"{self._seed} {sender} {receiver}")
        return path

    def set(self, sender: str, receiver: str, changes: dict[str, Any]) -> None:
        """Change some settings of a direction, for packets that are sent from now on."""
        path = self.path(sender, receiver)
        path.settings = replace(path.settings, **changes)

    def counts(self, sender: str, receiver: str) -> dict[str, int]:
        """What became of the packets of a direction."""
        return asdict(self.path(sender, receiver).counts)

    def sent(self, sender: str, data: bytes, now: float) -> None:
        """A host has sent a packet."""
        host, packet = self._hosts[sender], bytearray(data)
        ends = packets.addressing(packet)
        if ends is None or ends.source != host.address:
            self.strange += 1
            return
        receiver = self._at.get((host.behind, ends.destination))
        if receiver is None and host.behind is not None:
            if not self._nats[host.behind].outwards(packet, ends, now):
                self.strange += 1
                return
            receiver = self._at.get((None, ends.destination))
        if receiver is None and (router := self._nat_at.get(ends.destination)) is not None:
            receiver = self._through(router, packet, now)
            if receiver is None:
                return
        if receiver is None:
            self.strange += 1
            return
        due = self.path(sender, receiver.name).due(ends.protocol, len(packet), now)
        if due is None:
            return
        if due <= now:
            self._deliver(receiver.name, bytes(packet))
            return
        self._number += 1
        heapq.heappush(self._under_way, (due, self._number, receiver.name, bytes(packet)))

    def _through(self, router: str, packet: bytearray, now: float) -> _Host | None:
        ends = packets.addressing(packet)  # parsed again: the sender's NAT may have changed it
        assert ends is not None
        inside = self._nats[router].inwards(packet, ends, now)
        return None if inside is None else self._at.get((router, inside))

    def arrive(self, now: float) -> float | None:
        """Deliver due packets; seconds until the next one, or None."""
        while self._under_way and self._under_way[0][0] <= now:
            _, _, receiver, packet = heapq.heappop(self._under_way)
            self._deliver(receiver, packet)
        return self._under_way[0][0] - now if self._under_way else None
