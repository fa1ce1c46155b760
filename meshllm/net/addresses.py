"""This node's addresses: for its record and for invites.

Invariants: `addresses` is a pure function; only `read_interfaces` reads the machine's interfaces, and it sends nothing.
An address that peers observe is used only if two of them agree, because a single peer could lie.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import psutil

from meshllm.core.records import MAX_ADDRESSES, NodeId, PeerAddress

# Addresses for documentation (RFC 5737, RFC 3849): they are routed like others, and no host has them.
_UNUSED_HOSTS = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
# Peers whose observation of our address is kept; the latest of each counts.
MAX_OBSERVERS = 64
# Number of peers that must observe the same address before it is used.
OBSERVERS_NEEDED = 2

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of one interface. `default`: the interface has the default route."""

    interface: str
    host: str
    default: bool = False


def addresses(
    facts: Iterable[InterfaceAddress], port: int, *, observed: Iterable[PeerAddress] = (), loopback: bool = False
) -> tuple[PeerAddress, ...]:
    """At most MAX_ADDRESSES, best first: the default route's, then `observed` ones, then those of other interfaces.

    IPv4 comes before IPv6, private before global. `observed` addresses (see `ObservedAddresses`) keep their own port;
    they precede other interfaces because a machine may have many container bridges. Loopback comes last, and only if
    there is no other address or `loopback` is set (an invite may be used on the same machine). Link-local and multicast
    addresses are left out: they have no meaning on another network.
    """
    usable = [(found, ip) for found in facts if (ip := _parse(found.host)) is not None]
    outward = sorted(((fact, ip) for fact, ip in usable if not ip.is_loopback), key=_rank)
    inward = sorted(((fact, ip) for fact, ip in usable if ip.is_loopback), key=_rank)
    found = [PeerAddress(str(ip), port) for fact, ip in outward if fact.default]
    found += [seen for seen in observed if (ip := _parse(seen.host)) is not None and not ip.is_loopback]
    found += [PeerAddress(str(ip), port) for fact, ip in outward if not fact.default]
    last = [PeerAddress(str(ip), port) for _, ip in inward[:1]] if loopback or not found else []
    return (*tuple(dict.fromkeys(found))[: MAX_ADDRESSES - len(last)], *last)


def _rank(item: tuple[InterfaceAddress, _Ip]) -> tuple[int, bool, str, _Ip]:
    fact, ip = item
    return ip.version, ip.is_global, fact.interface, ip


def _parse(host: str) -> _Ip | None:
    """The address if another machine may be given it (loopback included), else None."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local or str(ip) == "255.255.255.255":
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def read_interfaces() -> list[InterfaceAddress]:
    """Addresses of the interfaces that are up."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    default = _default_hosts()
    return [
        InterfaceAddress(name, entry.address, entry.address in default)
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]


def _default_hosts() -> set[str]:
    """This machine's source address on the default route, one per address family. Nothing is sent."""
    hosts = set[str]()
    for family, host in _UNUSED_HOSTS:
        try:
            with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
                probe.connect((host, 9))
                hosts.add(str(probe.getsockname()[0]))
        except OSError:  # no such family here, or no route
            continue
    return hosts


class ObservedAddresses:
    """This node's address as its peers observe it (the only source for a node behind a NAT)."""

    def __init__(self) -> None:
        self._seen: dict[NodeId, PeerAddress] = {}

    def record(self, peer: NodeId, address: PeerAddress) -> None:
        """`peer` observes this node at `address`; replaces its earlier one; the oldest beyond MAX_OBSERVERS goes."""
        self._seen.pop(peer, None)
        if _parse(address.host) is None or not 0 < address.port < 65536:
            return
        self._seen[peer] = address
        if len(self._seen) > MAX_OBSERVERS:
            del self._seen[next(iter(self._seen))]

    def forget(self, peer: NodeId) -> None:
        """Drop the observation of a peer whose link ended."""
        self._seen.pop(peer, None)

    def confirmed(self, *, alone: bool = False) -> tuple[PeerAddress, ...]:
        """Addresses that OBSERVERS_NEEDED peers agree on, most observers first; with `alone`, one peer is enough."""
        needed = 1 if alone else OBSERVERS_NEEDED
        votes: dict[PeerAddress, int] = {}
        for address in self._seen.values():
            votes[address] = votes.get(address, 0) + 1
        return tuple(sorted((a for a, count in votes.items() if count >= needed), key=lambda a: (-votes[a], a)))
