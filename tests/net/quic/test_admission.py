"""Places for handshakes: a flood of mute ones keeps nobody out."""

from __future__ import annotations

import pytest

from meshllm.net.quic import admission
from meshllm.net.quic.admission import HandshakeAdmission

FLOOD = ("192.0.2.1", "192.0.2.2", "192.0.2.3")


class Fake:
    """A connection."""

    def __init__(self, *, mute: bool = True) -> None:
        self.mute = mute
        self.evicted = ""

    def evict(self, reason: str) -> None:
        """Closed."""
        self.evicted = reason


class Places:
    """An admission and a clock."""

    def __init__(self, known: frozenset[str] = frozenset()) -> None:
        self.now = 0.0
        self.admission: HandshakeAdmission[Fake] = HandshakeAdmission(0.0)
        self.admission.known = lambda address: address in known

    def come(self, address: str, *, mute: bool = True) -> Fake | None:
        """A first datagram."""
        if not self.admission.admit(address, self.now):
            return None
        made = Fake(mute=mute)
        self.admission.add(made, address, self.now)
        return made

    def flood(self, seconds: float, addresses: tuple[str, ...] = FLOOD, rate: float = 45.0) -> None:
        """Mute handshakes, round robin."""
        for number in range(int(seconds * rate)):
            self.now += 1 / rate
            self.come(addresses[number % len(addresses)])


def test_members_come_in_during_a_flood_from_three_addresses() -> None:
    places = Places()
    places.flood(10.0)
    members = [places.come("198.51.100.9") for _ in range(6)]
    places.flood(1.0)
    assert all(member is not None and not member.evicted for member in members)
    assert len(places.admission) <= admission.MAX_UNAUTHENTICATED


def test_flood_from_many_addresses_leaves_the_places_of_known_ones() -> None:
    places = Places(frozenset({"198.51.100.9"}))
    crowd = tuple(f"203.0.113.{number}" for number in range(200))
    places.flood(10.0, crowd, 400.0)
    members = [places.come("198.51.100.9") for _ in range(6)]
    places.flood(1.0, crowd, 400.0)
    assert all(member is not None and not member.evicted for member in members)


def test_full_place_goes_to_the_newcomer_from_the_oldest_mute_of_the_largest_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MAX_UNAUTHENTICATED", 4)
    monkeypatch.setattr(admission, "RESERVED_FOR_KNOWN", 0)
    places = Places()
    lone = places.come("192.0.2.9")
    speaking = places.come("192.0.2.1", mute=False)
    first, second = places.come("192.0.2.1"), places.come("192.0.2.1")
    new = places.come("192.0.2.2")
    assert lone
    assert speaking
    assert first
    assert second
    assert new
    assert first.evicted
    assert not (lone.evicted)
    assert not (speaking.evicted)
    assert not (second.evicted)
    assert not (new.evicted)


def test_newcomer_is_refused_if_none_is_mute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_UNAUTHENTICATED", 2)
    monkeypatch.setattr(admission, "RESERVED_FOR_KNOWN", 0)
    places = Places()
    assert places.come("192.0.2.1", mute=False)
    assert places.come("192.0.2.2", mute=False)
    assert places.come("192.0.2.3") is None


def test_mute_connections_are_closed_early_once_there_are_many() -> None:
    places = Places()
    few = [places.come(f"192.0.2.{number}") for number in range(admission.RETRY_ABOVE)]
    places.now = admission.MUTE_SECONDS
    assert places.come("198.51.100.1")
    assert all(each is not None and each.evicted for each in few)
    assert len(places.admission) == 1


def test_rates_bound_one_address_and_all_unknown_ones() -> None:
    places = Places(frozenset({"198.51.100.9"}))
    assert sum(places.come("192.0.2.1") is not None for _ in range(100)) == admission.NEW_CONNECTIONS_BURST
    made = sum(places.come(f"203.0.113.{number}") is not None for number in range(250))
    assert made == admission.NEW_UNKNOWN_BURST - admission.NEW_CONNECTIONS_BURST
    assert places.come("198.51.100.9")
