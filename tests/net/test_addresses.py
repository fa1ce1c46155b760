"""The addresses of a node."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.records import MAX_ADDRESSES, NodeId, PeerAddress
from meshllm.net.addresses import MAX_OBSERVERS, InterfaceAddress, ObservedAddresses, addresses, read_interfaces

LOOPBACK = [InterfaceAddress("lo", "127.0.0.1"), InterfaceAddress("lo", "::1")]


def hosts(facts: list[InterfaceAddress], loopback: bool = False, observed: tuple[PeerAddress, ...] = ()) -> list[str]:
    return [address.host for address in addresses(facts, 4242, observed=observed, loopback=loopback)]


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def test_addresses_put_default_route_then_ipv4_then_private_first() -> None:
    facts = [
        *LOOPBACK,
        InterfaceAddress("wlan0", "2a00:1450::7"),
        InterfaceAddress("wlan0", "fd00::7"),
        InterfaceAddress("br0", "8.8.4.4"),
        InterfaceAddress("br0", "172.17.0.1"),
        InterfaceAddress("eth0", "2a00:1450::8", default=True),
        InterfaceAddress("eth0", "10.0.0.5", default=True),
    ]
    assert hosts(facts) == ["10.0.0.5", "2a00:1450::8", "172.17.0.1", "8.8.4.4", "fd00::7", "2a00:1450::7"]


def test_addresses_leave_out_link_local_and_multicast() -> None:
    facts = [
        InterfaceAddress("eth0", host)
        for host in ("fe80::1%eth0", "169.254.7.7", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "255.255.255.255", "odd")
    ]
    assert hosts(facts) == []
    assert hosts([*facts, InterfaceAddress("eth0", "10.0.0.5")]) == ["10.0.0.5"]
    assert hosts([InterfaceAddress("eth0", "::ffff:10.0.0.5")]) == ["10.0.0.5"]


def test_addresses_use_loopback_last() -> None:
    ether = InterfaceAddress("eth0", "10.0.0.5", default=True)
    assert hosts(LOOPBACK) == ["127.0.0.1"]
    assert hosts([*LOOPBACK, ether]) == ["10.0.0.5"]
    assert hosts([*LOOPBACK, ether], loopback=True) == ["10.0.0.5", "127.0.0.1"]
    many = [InterfaceAddress("eth0", f"10.0.0.{number}") for number in range(1, 20)]
    assert hosts([*LOOPBACK, *many], loopback=True)[-1] == "127.0.0.1"


def test_addresses_put_observed_before_bridges_with_their_port() -> None:
    facts = [InterfaceAddress(f"br{number:02}", f"172.{number}.0.1") for number in range(16, 32)]
    facts.append(InterfaceAddress("eth0", "192.168.1.2", default=True))
    found = addresses(facts, 4242, observed=[PeerAddress("203.0.113.9", 40000), PeerAddress("127.0.0.1", 1)])
    assert found[:2] == (PeerAddress("192.168.1.2", 4242), PeerAddress("203.0.113.9", 40000))
    assert len(found) == MAX_ADDRESSES


@given(
    st.lists(st.builds(InterfaceAddress, st.text(max_size=3), st.ip_addresses().map(str) | st.text(), st.booleans()))
)
def test_addresses_are_bounded_and_unique(facts: list[InterfaceAddress]) -> None:
    for loopback in (False, True):
        found = addresses(facts, 1, loopback=loopback)
        assert len(found) <= MAX_ADDRESSES
        assert len(set(found)) == len(found)
        assert found == addresses(list(reversed(facts)), 1, loopback=loopback)


def test_read_interfaces_finds_an_address() -> None:
    found = addresses(read_interfaces(), 4242)
    assert found
    for address in found:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.host, 0))  # only an own address can be bound


def test_observed_address_needs_two_peers() -> None:
    observed, outside, lie = ObservedAddresses(), PeerAddress("203.0.113.9", 7), PeerAddress("198.51.100.1", 7)
    observed.record(node(1), outside)
    assert observed.confirmed() == ()
    assert observed.confirmed(alone=True) == (outside,)
    observed.record(node(1), outside)  # the same peer counts once
    assert observed.confirmed() == ()
    observed.record(node(2), outside)
    observed.record(node(3), lie)
    assert observed.confirmed() == (outside,)
    observed.record(node(2), lie)  # its last observation counts
    assert observed.confirmed() == (lie,)
    observed.forget(node(3))
    assert observed.confirmed() == ()


def test_observed_addresses_ignore_invalid_ones() -> None:
    observed = ObservedAddresses()
    for number, address in enumerate(
        [PeerAddress("224.0.0.1", 7), PeerAddress("odd", 7), PeerAddress("203.0.113.9", 0)]
    ):
        observed.record(node(number), address)
    assert observed.confirmed(alone=True) == ()


def test_observed_addresses_are_bounded() -> None:
    observed = ObservedAddresses()
    for number in range(MAX_OBSERVERS * 2):
        observed.record(node(number), PeerAddress("203.0.113.9", number + 1))
    assert len(observed.confirmed(alone=True)) == MAX_OBSERVERS
