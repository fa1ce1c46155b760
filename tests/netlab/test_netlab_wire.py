"""The wire and the NATs without a network, packet by packet."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.netlab import packets
from tests.netlab.nat import Nat
from tests.netlab.packets import ICMP, TCP, UDP
from tests.netlab.wire import Wire

A, B, C = "198.18.0.1", "198.18.0.2", "198.18.0.3"
HOME, INSIDE, NEIGHBOUR = "198.18.0.9", "192.168.1.2", "192.168.1.3"


def packet(
    source: str, source_port: int, destination: str, destination_port: int, protocol: int = UDP, data: bytes = b"data"
) -> bytes:
    """A packet with valid checksums; for ICMP an echo whose identifier is the source port."""
    ends = packets.number(source).to_bytes(4) + packets.number(destination).to_bytes(4)
    if protocol == ICMP:
        segment = bytearray(b"\x08\0\0\0" + source_port.to_bytes(2) + b"\0\1" + data)
        at, pseudo = 2, b""
    else:
        ports = source_port.to_bytes(2) + destination_port.to_bytes(2)
        rest, at = (
            ((8 + len(data)).to_bytes(2) + b"\0\0", 6) if protocol == UDP else (bytes(8) + b"\x50\x10" + bytes(6), 16)
        )
        segment = bytearray(ports + rest + data)
        pseudo = ends + bytes([0, protocol]) + len(segment).to_bytes(2)
    value = packets.checksum(pseudo + bytes(segment))
    segment[at : at + 2] = (value or 0xFFFF).to_bytes(2)
    head = bytearray(
        b"\x45\0" + (20 + len(segment)).to_bytes(2) + b"\0\0\x40\0\x40" + bytes([protocol]) + b"\0\0" + ends
    )
    head[10:12] = packets.checksum(bytes(head)).to_bytes(2)
    return bytes(head + segment)


def sums_are_right(data: bytes) -> bool:
    """Whether both checksums are valid."""
    protocol, segment = data[9], data[20:]
    pseudo = b"" if protocol == ICMP else data[12:20] + bytes([0, protocol]) + len(segment).to_bytes(2)
    return packets.checksum(data[:20]) == 0 and packets.checksum(pseudo + segment) == 0


class Rig:
    """A wire that records its deliveries."""

    def __init__(self, seed: int = 0) -> None:
        self.delivered: list[tuple[str, bytes]] = []
        self.wire = Wire(seed, lambda host, data: self.delivered.append((host, data)))
        for name, address in (("a", A), ("b", B), ("c", C)):
            self.wire.place(name, address, None)

    def behind(self, kind: str, **options: float) -> Nat:
        self.wire.add_nat("home", kind, HOME, **options)
        self.wire.place("inside", INSIDE, "home")
        self.wire.place("neighbour", NEIGHBOUR, "home")
        return self.wire.nat("home")

    def send(self, sender: str, data: bytes, now: float = 0.0) -> tuple[str, packets.Addressing] | None:
        """The host that got the packet and the packet's ends, or None."""
        before = len(self.delivered)
        self.wire.sent(sender, data, now)
        if len(self.delivered) == before:
            return None
        host, arrived = self.delivered[-1]
        assert sums_are_right(arrived)
        ends = packets.addressing(arrived)
        assert ends is not None
        return host, ends


@given(
    protocol=st.sampled_from([TCP, UDP, ICMP]),
    data=st.binary(max_size=64),
    ports=st.tuples(*[st.integers(0, 65535)] * 3),
    address=st.integers(0, 2**32 - 1),
    outwards=st.booleans(),
)
def test_rewritten_packets_have_valid_checksums(
    protocol: int, data: bytes, ports: tuple[int, int, int], address: int, outwards: bool
) -> None:
    changed = bytearray(packet(A, ports[0], B, ports[1], protocol, data))
    assert sums_are_right(bytes(changed))
    (packets.set_source if outwards else packets.set_destination)(changed, address, ports[2])
    assert sums_are_right(bytes(changed))
    ends = packets.addressing(changed)
    assert ends is not None
    assert (address, ports[2]) == (
        (ends.source, ends.source_port) if outwards else (ends.destination, ends.destination_port)
    )


@given(st.binary(max_size=80), st.integers(0, 80))
def test_garbage_is_dropped(garbage: bytes, length: int) -> None:
    rig = Rig()
    rig.behind("cone")
    for sender, source in (("a", A), ("inside", INSIDE)):
        for data in (garbage, packet(source, 1, B, 2)[:length], b"\x45" + garbage):
            rig.wire.sent(sender, data, 0.0)


def test_packets_reach_their_address_only() -> None:
    rig = Rig()
    assert rig.send("a", packet(A, 1, B, 2)) is not None
    assert rig.delivered[-1] == ("b", packet(A, 1, B, 2))
    assert rig.send("a", packet(C, 1, B, 2)) is None, "a forged sender"
    assert rig.send("a", packet(A, 1, "198.18.0.77", 2)) is None
    assert rig.wire.strange == 2


def test_delay_and_jitter_keep_bounds_and_order() -> None:
    rig = Rig()
    rig.wire.set("a", "b", {"delay": 0.1, "jitter": 0.05})
    sent = [packet(A, 1, B, number) for number in range(50)]
    for number, data in enumerate(sent):
        rig.wire.sent("a", data, number * 0.001)
    assert rig.wire.arrive(0.0999) is not None
    assert rig.delivered == []
    assert rig.wire.arrive(0.2) is None
    assert rig.delivered == [("b", data) for data in sent]


def test_rate_spreads_packets_with_a_bounded_queue() -> None:
    rig = Rig()
    rig.wire.set("a", "b", {"rate": 10_000.0, "queue": 10_000})
    data = packet(A, 1, B, 2, data=bytes(1000 - 28))
    for _ in range(20):
        rig.wire.sent("a", data, 0.0)
    assert rig.wire.counts("a", "b") | {"passed": 10, "overflowed": 10} == rig.wire.counts("a", "b")
    rig.wire.arrive(0.4999)
    assert len(rig.delivered) == 4
    rig.wire.arrive(1.0)
    assert len(rig.delivered) == 10


def lost(seed: int, loss: float) -> list[int]:
    rig = Rig(seed)
    rig.wire.set("a", "b", {"loss": loss})
    return [number for number in range(2000) if rig.send("a", packet(A, 1, B, number)) is None]


def test_loss_is_seeded_and_has_the_requested_share() -> None:
    assert lost(1, 0.05) == lost(1, 0.05)
    assert lost(1, 0.05) != lost(2, 0.05)
    assert set(lost(1, 0.05)) < set(lost(1, 0.25))
    assert 60 < len(lost(1, 0.05)) < 140
    assert lost(1, 0.0) == []


def test_cut_and_block_work_in_one_direction() -> None:
    rig = Rig()
    rig.wire.set("a", "b", {"cut": True})
    rig.wire.set("b", "a", {"blocked": ["tcp"]})
    assert rig.send("a", packet(A, 1, B, 2)) is None
    assert rig.send("b", packet(B, 1, A, 2)) is not None
    assert rig.send("b", packet(B, 1, A, 2, TCP)) is None
    rig.wire.set("a", "b", {"cut": False})
    assert rig.send("a", packet(A, 1, B, 2)) is not None
    assert rig.wire.counts("a", "b") | {"passed": 1, "cut": 1} == rig.wire.counts("a", "b")
    assert rig.wire.counts("b", "a") | {"passed": 1, "blocked": 1} == rig.wire.counts("b", "a")
    with pytest.raises(ValueError, match="no such protocol"):
        rig.wire.set("a", "b", {"blocked": ["smtp"]})


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
@pytest.mark.parametrize("kind", ["cone", "symmetric"])
def test_nat_passes_replies_only(kind: str, protocol: int) -> None:
    rig = Rig()
    nat = rig.behind(kind)
    assert rig.send("a", packet(A, 80, HOME, 20000, protocol)) is None
    out = rig.send("inside", packet(INSIDE, 5000, A, 80, protocol))
    assert out is not None
    host, ends = out
    assert (host, ends.source) == ("a", packets.number(HOME))
    port = ends.source_port
    answer_port = port if protocol == ICMP else 80
    back = rig.send("a", packet(A, answer_port, HOME, port, protocol))
    assert back is not None
    assert (back[0], back[1].destination) == ("inside", packets.number(INSIDE))
    assert back[1].destination_port == 5000
    assert rig.send("b", packet(B, answer_port, HOME, port, protocol)) is None, "another host"
    assert nat.uninvited == 2
    if protocol != ICMP:
        assert rig.send("a", packet(A, 81, HOME, port, protocol)) is None, "another port of that host"
    nat.forget()
    assert rig.send("a", packet(A, answer_port, HOME, port, protocol)) is None


def test_cone_nat_keeps_its_port_and_symmetric_nat_does_not() -> None:
    for kind, same in (("cone", True), ("symmetric", False)):
        rig = Rig()
        rig.behind(kind)
        out = [rig.send("inside", packet(INSIDE, 5000, there, 80)) for there in (A, B, A)]
        ports = [one[1].source_port for one in out if one is not None]
        assert len(ports) == 3
        assert ports[0] == ports[2]
        assert (ports[0] == ports[1]) is same


def test_nat_mapping_expires() -> None:
    rig = Rig()
    rig.behind("cone", udp_seconds=30.0)
    first = rig.send("inside", packet(INSIDE, 5000, A, 80), 0.0)
    assert first is not None
    port = first[1].source_port
    assert rig.send("a", packet(A, 80, HOME, port), 29.0) is not None
    assert rig.send("a", packet(A, 80, HOME, port), 58.0) is not None
    assert rig.send("a", packet(A, 80, HOME, port), 89.0) is None
    again = rig.send("inside", packet(INSIDE, 5000, A, 80), 90.0)
    assert again is not None
    assert again[1].source_port != port


def test_neighbours_behind_a_nat_connect_directly() -> None:
    rig = Rig()
    rig.behind("symmetric")
    assert rig.send("inside", packet(INSIDE, 1, NEIGHBOUR, 2)) is not None
    assert rig.delivered[-1] == ("neighbour", packet(INSIDE, 1, NEIGHBOUR, 2))
    assert rig.send("a", packet(A, 1, INSIDE, 2)) is None, "an inside address means nothing outside"


def test_hosts_behind_nats_connect_if_both_send() -> None:
    rig = Rig()
    rig.behind("cone")
    rig.wire.add_nat("office", "cone", "198.18.0.10")
    rig.wire.place("clerk", "192.168.2.2", "office")
    met = [rig.send("inside", packet(INSIDE, 7, A, 80)), rig.send("clerk", packet("192.168.2.2", 7, A, 80))]
    ports = [one[1].source_port for one in met if one is not None]
    assert rig.send("inside", packet(INSIDE, 7, "198.18.0.10", ports[1])) is None, "not asked yet"
    through = rig.send("clerk", packet("192.168.2.2", 7, HOME, ports[0]))
    assert through is not None
    assert through[0] == "inside"


def test_host_moves() -> None:
    rig = Rig()
    rig.wire.place("b", "198.18.0.20", None)
    assert rig.send("a", packet(A, 1, B, 2)) is None
    assert rig.send("a", packet(A, 1, "198.18.0.20", 2)) is not None
    with pytest.raises(ValueError, match="taken"):
        rig.wire.place("d", A, None)


def test_random_flows_keep_their_inside_ports() -> None:
    rig, chance = Rig(), random.Random(3)
    rig.behind("cone")
    for _ in range(300):
        inside_port, port = chance.randrange(1, 60000), chance.randrange(1, 60000)
        out = rig.send("inside", packet(INSIDE, inside_port, B, port))
        assert out is not None
        back = rig.send("b", packet(B, port, HOME, out[1].source_port))
        assert back is not None
        assert back[1].destination_port == inside_port
