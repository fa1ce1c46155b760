"""A home router: many inside addresses behind one outside address.

Pure: time is an argument. It passes replies only: from exactly the address and port that was sent to (RFC 4787, address
and port dependent filtering). A `cone` maps an inside port to the same outside port for all destinations; a `symmetric`
one to another port for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.netlab import packets
from tests.netlab.packets import TCP, UDP, Addressing

KINDS = ("cone", "symmetric")
# RFC 4787 asks for at least two minutes, and usual routers wait no longer. TCP: RFC 5382, rounded.
UDP_SECONDS = 120.0
TCP_SECONDS = 7200.0
ICMP_SECONDS = 60.0
FIRST_PORT, LAST_PORT = 20000, 59999


@dataclass(slots=True)
class _Mapping:
    inside: tuple[int, int]
    outside_port: int
    # Destinations of this mapping and when they were last used; only they may reply.
    partners: dict[tuple[int, int], float] = field(default_factory=dict)


def _partner(protocol: int, address: int, port: int) -> tuple[int, int]:
    """The key of a permitted sender. An echo reply has the sender's identifier and no port."""
    return address, 0 if protocol == packets.ICMP else port


class Nat:
    """One router with the outside address `outside`."""

    def __init__(self, kind: str, outside: int, udp_seconds: float = UDP_SECONDS) -> None:
        if kind not in KINDS:
            raise ValueError(f"a NAT is one of {KINDS}, not {kind!r}")
        self.kind = kind
        self.outside = outside
        self.uninvited = 0
        self._seconds = {UDP: udp_seconds, TCP: TCP_SECONDS}
        self._by_inside: dict[tuple[int, ...], _Mapping] = {}
        self._by_port: dict[tuple[int, int], _Mapping] = {}
        self._next_port = FIRST_PORT

    def forget(self) -> None:
        """As after a restart: no mapping is left."""
        self._by_inside.clear()
        self._by_port.clear()

    def outwards(self, packet: bytearray, ends: Addressing, now: float) -> bool:
        """Translate an outgoing packet. False: drop it."""
        if not packets.translatable(packet):
            return False
        key: tuple[int, ...] = (ends.protocol, ends.source, ends.source_port)
        if self.kind == "symmetric":
            key = (*key, ends.destination, ends.destination_port)
        mapping = self._by_inside.get(key)
        if mapping is None or self._expired(mapping, ends.protocol, now):
            mapping = self._map(key, ends)
        mapping.partners[_partner(ends.protocol, ends.destination, ends.destination_port)] = now
        packets.set_source(packet, self.outside, mapping.outside_port)
        return True

    def inwards(self, packet: bytearray, ends: Addressing, now: float) -> int | None:
        """The inside address of an incoming packet, translated. None: no host inside asked for it."""
        mapping = self._by_port.get((ends.protocol, ends.destination_port))
        partner = _partner(ends.protocol, ends.source, ends.source_port)
        asked = None if mapping is None else mapping.partners.get(partner)
        if mapping is None or asked is None or now - asked > self._lasts(ends.protocol):
            self.uninvited += 1
            return None
        mapping.partners[partner] = now
        packets.set_destination(packet, *mapping.inside)
        return mapping.inside[0]

    def _lasts(self, protocol: int) -> float:
        return self._seconds.get(protocol, ICMP_SECONDS)

    def _expired(self, mapping: _Mapping, protocol: int, now: float) -> bool:
        return all(now - asked > self._lasts(protocol) for asked in mapping.partners.values())

    def _map(self, key: tuple[int, ...], ends: Addressing) -> _Mapping:
        if (old := self._by_inside.pop(key, None)) is not None:
            del self._by_port[ends.protocol, old.outside_port]
        while (ends.protocol, self._next_port) in self._by_port:
            self._turn()
        mapping = _Mapping((ends.source, ends.source_port), self._next_port)
        self._by_inside[key] = self._by_port[ends.protocol, self._next_port] = mapping
        self._turn()
        return mapping

    def _turn(self) -> None:
        self._next_port = FIRST_PORT if self._next_port == LAST_PORT else self._next_port + 1
