"""The UDP socket: datagrams are routed to connections by connection id, dialled or accepted.

Invariants: a datagram without a connection costs a lookup. A first datagram makes a connection only within the limits
of `admission`; from RETRY_ABOVE unauthenticated connections on, its sender must prove its address first (Retry; RFC
9000, 8.1).
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
from meshllm.net.quic.admission import HandshakeAdmission
from meshllm.net.quic.connection import CONNECTION_ID_BYTES, VERSIONS

# (host, port) or (host, port, flow, scope), as sockets use them.
SocketAddress = tuple[str, int] | tuple[str, int, int, int]

# Datagrams read before other callbacks run.
DATAGRAMS_AT_ONCE = 64
# Minimum size of a first datagram (RFC 9000, 14.1).
SMALLEST_INITIAL = 1200
LONGEST_DATAGRAM = 2048
# Requested for each direction; the system may give less.
SOCKET_BUFFER_BYTES = 4 << 20
# Connection ids (8 per connection) of closed connections, whose close packet is sent again to a peer that still sends.
MAX_CLOSES_KEPT = 2048
CLOSE_RESENDS = 8


@dataclass(slots=True)
class CloseDatagram:
    """The last datagram of a closed connection, and how often it may still be sent again."""

    datagram: bytes
    left: int = CLOSE_RESENDS


class DatagramRoute(Protocol):
    """Receives the datagrams of a connection."""

    def receive(self, data: bytes, source: SocketAddress, now: float) -> None:
        """One datagram."""

    def received(self) -> None:
        """Called after a batch of datagrams."""

    @property
    def mute(self) -> bool:
        """Whether no byte of a stream has come."""

    def evict(self, reason: str) -> None:
        """Close the connection without a packet, because others need its place."""


# Makes a connection for a first datagram: (its destination id, source id of the Retry or None, address).
AcceptConnection = Callable[[bytes, bytes | None, SocketAddress], "DatagramRoute"]


class Endpoint:
    """The socket and its routes. `accept` makes connections; connections maintain `routes`."""

    def __init__(self, accept: AcceptConnection, clock: Clock) -> None:
        self.routes: dict[bytes, DatagramRoute] = {}
        self.port = 0
        self._accept = accept
        self._clock = clock
        self._socket: socket.socket | None = None
        self._ipv6 = False
        self.admission: HandshakeAdmission[DatagramRoute] = HandshakeAdmission(clock())
        self._retry = QuicRetryTokenHandler()
        self._closes: OrderedDict[bytes, CloseDatagram] = OrderedDict()

    # -- opening and closing

    def open(self, host: str | None, port: int) -> int:
        """Listen; return the port. Without `host` on all addresses of both families. Raises PortTaken."""
        try:
            self._socket, self._ipv6 = _bind(host, port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise port_taken(error, "UDP", port, "--bind-port") from error
        self.port = int(self._socket.getsockname()[1])
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
        return self.port

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self.routes.clear()

    # -- sending

    def send(self, data: bytes, destination: SocketAddress) -> bool:
        """Send a datagram. False: there is no route. A datagram that exceeds the system's buffer is lost, as on the
        network."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(data, destination)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:
            # Errors of an earlier datagram, or a full buffer.
            return error.errno in (errno.ECONNREFUSED, errno.ENOBUFS, errno.EPERM)
        return True

    def sockaddr(self, address: PeerAddress) -> SocketAddress:
        """The address in the form of `receive`, so that both compare. Raises ValueError if it is no IP address."""
        host = ipaddress.ip_address(address.host)
        if not self._ipv6:
            return (str(host), address.port)
        text = f"::ffff:{host}" if host.version == 4 else str(host)
        return (text, address.port, 0, 0)

    # -- unauthenticated connections

    def authenticated(self, route: DatagramRoute) -> None:
        """The connection is authenticated or closed: stop counting it."""
        self.admission.remove(route)

    @property
    def unauthenticated(self) -> int:
        """Number of unauthenticated connections."""
        return len(self.admission)

    def keep_close(self, ids: tuple[bytes, ...], datagram: bytes) -> None:
        """Keep a connection's close packet, to send it again to a peer that still sends."""
        close = CloseDatagram(datagram)
        for connection_id in ids:
            self._closes[connection_id] = close
        while len(self._closes) > MAX_CLOSES_KEPT:
            self._closes.popitem(last=False)

    # -- receiving

    def _readable(self) -> None:
        touched: dict[DatagramRoute, None] = {}
        now = self._clock()
        for _ in range(DATAGRAMS_AT_ONCE):
            if self._socket is None:
                break
            try:
                data, source = self._socket.recvfrom(LONGEST_DATAGRAM)
            except OSError:  # the queue is empty, or an error of an earlier datagram
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
            if route is None and connection_id in self._closes:
                self._resend_close(connection_id, source)
            return route
        route = self.routes.get(data[6 : 6 + data[5]])
        if route is None and len(data) >= SMALLEST_INITIAL:
            return self._accept_datagram(data, source, now)
        return route

    def _accept_datagram(self, data: bytes, source: SocketAddress, now: float) -> DatagramRoute | None:
        """Make a connection for a first datagram, within the limits."""
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
        original, retried = header.destination_cid, None
        if header.token:
            try:
                original = self._retry.validate_token(
                    address=source, destination_cid=header.destination_cid, token=header.token, now=now
                )
            except ValueError:
                return None
            retried = header.destination_cid
        elif self.admission.crowded:
            self._send_retry(header, source, now)
            return None
        address = address_key(source[0])
        if not self.admission.admit(address, now):
            return None
        route = self._accept(original, retried, source)
        self.admission.add(route, address, now)
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

    def _resend_close(self, connection_id: bytes, source: SocketAddress) -> None:
        close = self._closes[connection_id]
        if close.left > 0:
            close.left -= 1
            self.send(close.datagram, source)


def _bind(host: str | None, port: int) -> tuple[socket.socket, bool]:
    """A dual-stack socket where possible; whether it is IPv6."""
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
    """Request the largest buffer that the system gives: macOS refuses a larger one, Linux reduces it."""
    size = SOCKET_BUFFER_BYTES
    while size > 1 << 16:
        try:
            made.setsockopt(socket.SOL_SOCKET, option, size)
            return
        except OSError:
            size //= 2


def to_address(source: SocketAddress) -> PeerAddress:
    """The address for other modules: IPv4-mapped IPv6 becomes IPv4, without scope."""
    host = source[0].partition("%")[0]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return PeerAddress(host, source[1])


def address_key(host: str) -> str:
    """The unit of rate limits: an IPv4 address, or the /64 of an IPv6 address."""
    address = to_address((host, 0)).host
    if ":" not in address:
        return address
    return ipaddress.IPv6Address(address).packed[:8].hex()
