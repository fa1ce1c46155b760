"""The one UDP socket: what comes in finds its connection by the connection id, whoever dialled.

Law: a datagram that belongs to no connection costs a lookup. A stranger's first one makes a connection only within
bounds (in all, per address, per second), and from RETRY_ABOVE strangers on only if its sender shows that it receives
what is sent to its address (RFC 9000, 8.1), so that made-up addresses take nobody's place.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aioquic._buffer import Buffer
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from meshllm.core.records import PeerAddress
from meshllm.errors import port_taken
from meshllm.net.base import Clock
from meshllm.net.quic.connection import CONNECTION_ID_BYTES, VERSIONS
from meshllm.util.rate_limiter import TokenBucket

# (host, port) or (host, port, flow, scope), as the socket gives and takes it.
SocketAddress = tuple[str, int] | tuple[str, int, int, int]

# Connections of strangers at a time. A handshake takes some 5 ms of processor and, while it lasts, 50 KiB.
MAX_UNAUTHENTICATED = 64
# And from one address (IPv6: one /64): many nodes may sit behind one, but they do not all come in the same second.
MAX_UNAUTHENTICATED_PER_ADDRESS = 24
RETRY_ABOVE = 16
# New connections from one address: in the long run, and at once.
NEW_CONNECTIONS_PER_SECOND = 20.0
NEW_CONNECTIONS_BURST = 60.0
MAX_ADDRESSES_KNOWN = 1024
# Datagrams read before others get a turn.
DATAGRAMS_AT_ONCE = 64
# The least a first datagram may be (RFC 9000, 14.1).
SMALLEST_INITIAL = 1200
LONGEST_DATAGRAM = 2048
# Asked of the system for each direction; it may give less.
SOCKET_BUFFER_BYTES = 4 << 20
# Connection ids (8 a connection) of ended connections, whose last words are said again to a peer that goes on.
MAX_CLOSES_KEPT = 2048
CLOSE_RESENDS = 8


@dataclass(slots=True)
class CloseDatagram:
    """A connection's last datagram, and how often it may still be said again."""

    datagram: bytes
    left: int = CLOSE_RESENDS


class DatagramRoute(Protocol):
    """Who takes the datagrams of a connection."""

    def receive(self, data: bytes, source: SocketAddress, now: float) -> None:
        """One of them."""

    def received(self) -> None:
        """After a few of them."""


# Makes a connection for a stranger: (first datagram's destination, source id the retry gave or None, address).
Welcome = Callable[[bytes, bytes | None, SocketAddress], "DatagramRoute"]


class Endpoint:
    """`accept` makes connections; `routes` are kept up by them."""

    def __init__(self, accept: Welcome, clock: Clock) -> None:
        self.routes: dict[bytes, DatagramRoute] = {}
        self.port = 0
        self._accept = accept
        self._clock = clock
        self._socket: socket.socket | None = None
        self._ipv6 = False
        self._strangers: dict[DatagramRoute, str] = {}
        self._per_address: dict[str, int] = {}
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._retry = QuicRetryTokenHandler()
        self._farewells: OrderedDict[bytes, CloseDatagram] = OrderedDict()

    # -- life

    def open(self, host: str | None, port: int) -> int:
        """Listen; the port. Without `host` on all addresses of both families. Raises PortTaken."""
        try:
            self._socket, self._ipv6 = _bind(host, port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise port_taken(error, f"UDP port {port}", "--bind-port") from error
        self.port = int(self._socket.getsockname()[1])
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
        return self.port

    def close(self) -> None:
        """Nothing is left."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self.routes.clear()

    # -- sending

    def send(self, data: bytes, destination: SocketAddress) -> bool:
        """Whether there is a way there at all. What does not fit the system's buffer is lost, as datagrams are."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(data, destination)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            # What the network says about an earlier datagram; and a full buffer by another name.
            return error.errno in (errno.ECONNREFUSED, errno.ENOBUFS, errno.EPERM)
        return True

    def sockaddr(self, address: PeerAddress) -> SocketAddress:
        """As `receive` gives it, so that both compare. Raises ValueError for what is no IP address."""
        host = ipaddress.ip_address(address.host)
        if not self._ipv6:
            return (str(host), address.port)
        text = f"::ffff:{host}" if host.version == 4 else str(host)
        return (text, address.port, 0, 0)

    # -- strangers

    def known(self, route: DatagramRoute) -> None:
        """No stranger any more: it has proved who it is, or it is gone."""
        key = self._strangers.pop(route, None)
        if key is not None:
            left = self._per_address[key] - 1
            if left:
                self._per_address[key] = left
            else:
                del self._per_address[key]

    @property
    def strangers(self) -> int:
        """Connections of whoever has proved nothing yet."""
        return len(self._strangers)

    def farewell(self, ids: tuple[bytes, ...], datagram: bytes) -> None:
        """A connection has ended with that datagram; say it again if the peer goes on."""
        words = CloseDatagram(datagram)
        for connection_id in ids:
            self._farewells[connection_id] = words
        while len(self._farewells) > MAX_CLOSES_KEPT:
            self._farewells.popitem(last=False)

    # -- receiving

    def _readable(self) -> None:
        touched: dict[DatagramRoute, None] = {}
        now = self._clock()
        for _ in range(DATAGRAMS_AT_ONCE):
            if self._socket is None:
                break
            try:
                data, source = self._socket.recvfrom(LONGEST_DATAGRAM)
            except OSError:  # nothing more, or what the network says about a datagram sent earlier
                break
            route = self._route(data, source, now)
            if route is not None:
                touched[route] = None
                route.receive(data, source, now)
        for route in touched:
            route.received()

    def _route(self, data: bytes, source: SocketAddress, now: float) -> DatagramRoute | None:
        if len(data) < 1 + CONNECTION_ID_BYTES:
            return None
        if not data[0] & 0x80:
            connection_id = data[1 : 1 + CONNECTION_ID_BYTES]
            route = self.routes.get(connection_id)
            if route is None and connection_id in self._farewells:
                self._say_again(connection_id, source)
            return route
        route = self.routes.get(data[6 : 6 + data[5]])
        if route is None and len(data) >= SMALLEST_INITIAL:
            return self._stranger(data, source, now)
        return route

    def _stranger(self, data: bytes, source: SocketAddress, now: float) -> DatagramRoute | None:
        """A connection for a stranger's first datagram, if there is room for it."""
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            return None
        if header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            return None
        if header.version not in VERSIONS:
            packet = encode_quic_version_negotiation(
                source_cid=header.destination_cid, destination_cid=header.source_cid, supported_versions=VERSIONS
            )
            self.send(packet, source)
            return None
        if header.packet_type != QuicPacketType.INITIAL or len(header.destination_cid) < CONNECTION_ID_BYTES:
            return None
        key = address_key(source[0])
        if (
            len(self._strangers) >= MAX_UNAUTHENTICATED
            or self._per_address.get(key, 0) >= MAX_UNAUTHENTICATED_PER_ADDRESS
        ):
            return None
        original, retried = header.destination_cid, None
        if header.token:
            try:
                original = self._retry.validate_token(
                    address=source, destination_cid=header.destination_cid, token=header.token, now=now
                )
            except ValueError:
                return None
            retried = header.destination_cid
        elif len(self._strangers) >= RETRY_ABOVE:
            self._send_retry(header, source, now)
            return None
        if not self._bucket(key, now).take(now):
            return None
        route = self._accept(original, retried, source)
        self._strangers[route] = key
        self._per_address[key] = self._per_address.get(key, 0) + 1
        self.routes[header.destination_cid] = route
        return route

    def _send_retry(self, header: QuicHeader, source: SocketAddress, now: float) -> None:
        connection_id = os.urandom(CONNECTION_ID_BYTES)
        token = self._retry.create_token(
            address=source,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=connection_id,
            now=now,
        )
        packet = encode_quic_retry(
            version=VERSIONS[0],
            source_cid=connection_id,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        self.send(packet, source)

    def _bucket(self, key: str, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(NEW_CONNECTIONS_PER_SECOND, NEW_CONNECTIONS_BURST, now)
            if len(self._buckets) > MAX_ADDRESSES_KNOWN:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket

    def _say_again(self, connection_id: bytes, source: SocketAddress) -> None:
        words = self._farewells[connection_id]
        if words.left > 0:
            words.left -= 1
            self.send(words.datagram, source)


def _bind(host: str | None, port: int) -> tuple[socket.socket, bool]:
    """A socket for both families where the system has both, and whether it speaks IPv6."""
    if host is None and socket.has_ipv6:
        try:
            return _socket(socket.AF_INET6, "::", port), True
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise
    host = host or "0.0.0.0"
    ipv6 = ":" in host
    return _socket(socket.AF_INET6 if ipv6 else socket.AF_INET, host, port), ipv6


def _socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            _enlarge(made, option)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


def _enlarge(made: socket.socket, option: int) -> None:
    """As large a buffer as the system gives: macOS refuses what is too large, Linux cuts it."""
    size = SOCKET_BUFFER_BYTES
    while size > 1 << 16:
        try:
            made.setsockopt(socket.SOL_SOCKET, option, size)
            return
        except OSError:
            size //= 2


def to_address(source: SocketAddress) -> PeerAddress:
    """What other parts of the program call it: IPv4 in IPv6 clothing is IPv4, scopes are left out."""
    host = source[0].partition("%")[0]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return PeerAddress(host, source[1])


def address_key(host: str) -> str:
    """What counts as one sender: an IPv4 address, or the 64 bits of an IPv6 network, of which one host has as many
    addresses as it likes."""
    address = to_address((host, 0)).host
    if ":" not in address:
        return address
    return ipaddress.IPv6Address(address).packed[:8].hex()
