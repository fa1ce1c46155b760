"""Where this node can be reached: what it tells others, and what it puts into invites.

Law: `addresses` is a pure function of facts about interfaces; only `read_facts` looks at the machine, and it sends
nothing. What a single peer says it saw is not believed: it could send everybody anywhere.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import psutil

from meshllm.core.records import MAX_ADDRESSES, NodeId, PeerAddress

# Addresses for documentation (RFC 5737, RFC 3849): routed like any other, answered by nobody.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
# Peers whose word on our address is kept, and what each of them may have said last.
MAX_WITNESSES = 64
# So many different peers must see the same address before it is passed on.
WITNESSES_NEEDED = 2

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """One address of one interface. `default`: what the system uses to reach the rest of the world."""

    interface: str
    host: str
    default: bool = False


def addresses(
    facts: Iterable[InterfaceFacts], port: int, *, observed: Iterable[PeerAddress] = (), loopback: bool = False
) -> tuple[PeerAddress, ...]:
    """At most MAX_ADDRESSES, the likeliest first: those of the default route, those that others see, all the rest.

    IPv4 comes before IPv6, private before global. `observed` addresses (see `Observed`) keep the port they were seen
    with; they come before the rest because a machine may have any number of bridges for its containers. Loopback is
    among them only if there is nothing else, or if `loopback` asks for it: then it is the last (an invite may be used
    on the same machine). Addresses that mean something on one wire only (link-local, multicast) never are.
    """
    usable = [(found, ip) for found in facts if (ip := _parse(found.host)) is not None]
    outward = sorted(((fact, ip) for fact, ip in usable if not ip.is_loopback), key=_rank)
    inward = sorted(((fact, ip) for fact, ip in usable if ip.is_loopback), key=_rank)
    found = [PeerAddress(str(ip), port) for fact, ip in outward if fact.default]
    found += [seen for seen in observed if (ip := _parse(seen.host)) is not None and not ip.is_loopback]
    found += [PeerAddress(str(ip), port) for fact, ip in outward if not fact.default]
    last = [PeerAddress(str(ip), port) for _, ip in inward[:1]] if loopback or not found else []
    return (*tuple(dict.fromkeys(found))[: MAX_ADDRESSES - len(last)], *last)


def _rank(item: tuple[InterfaceFacts, _Ip]) -> tuple[int, bool, str, _Ip]:
    fact, ip = item
    return ip.version, ip.is_global, fact.interface, ip


def _parse(host: str) -> _Ip | None:
    """An address that may be told to others, loopback included; None for what means nothing elsewhere."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local or str(ip) == "255.255.255.255":
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def read_facts() -> list[InterfaceFacts]:
    """The addresses of this machine's interfaces that are up."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    default = _default_hosts()
    return [
        InterfaceFacts(name, entry.address, entry.address in default)
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    ]


def _default_hosts() -> set[str]:
    """This machine's own address towards the rest of the world, per family. Nothing is sent."""
    hosts = set[str]()
    for family, elsewhere in _ELSEWHERE:
        try:
            with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
                probe.connect((elsewhere, 9))
                hosts.add(str(probe.getsockname()[0]))
        except OSError:  # no such family here, or no route
            continue
    return hosts


class Observed:
    """What peers see as our address (behind a NAT nothing else knows it). Believed when two peers agree.

    In a mesh of two the only peer's word is taken: `alone` says so when asked.
    """

    def __init__(self) -> None:
        self._seen: dict[NodeId, PeerAddress] = {}

    def saw(self, peer: NodeId, address: PeerAddress) -> None:
        """`peer` sees us at `address`. Its last word counts; the oldest witness goes when there are too many."""
        self._seen.pop(peer, None)
        if _parse(address.host) is None or not 0 < address.port < 65536:
            return
        self._seen[peer] = address
        if len(self._seen) > MAX_WITNESSES:
            del self._seen[next(iter(self._seen))]

    def forget(self, peer: NodeId) -> None:
        """The peer is gone, and its word with it."""
        self._seen.pop(peer, None)

    def believed(self, *, alone: bool = False) -> tuple[PeerAddress, ...]:
        """The addresses enough peers agree on, most witnesses first. `alone`: this node knows one peer only."""
        needed = 1 if alone else WITNESSES_NEEDED
        votes: dict[PeerAddress, int] = {}
        for address in self._seen.values():
            votes[address] = votes.get(address, 0) + 1
        return tuple(sorted((a for a, count in votes.items() if count >= needed), key=lambda a: (-votes[a], a)))
