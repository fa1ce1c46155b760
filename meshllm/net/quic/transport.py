"""Links over QUIC: `base.Transport` on one UDP socket, with aioquic.

Invariants: the dialler sends only QUIC's own handshake before it has compared the certificate's key with the pin. An
exception of aioquic on a peer's datagram ends that connection alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from aioquic.quic import events

from meshllm.core.records import NodeId, PeerAddress
from meshllm.errors import PeerRefused
from meshllm.net.base import Clock
from meshllm.net.connection_protocol import StreamConnection, StreamConnectionUser
from meshllm.net.handshake import Credentials
from meshllm.net.identity import Identity
from meshllm.net.node_link import NodeLink
from meshllm.net.node_transport import NodeTransport
from meshllm.net.quic.connection import MeshConnection, configuration
from meshllm.net.quic.endpoint import DatagramRoute, Endpoint, SocketAddress, to_address
from meshllm.net.quic.happy_eyeballs import Attempt, PendingDial

# Application error code of a closed connection; the reason is text.
CLOSED = 0
# aioquic logs each connection at INFO and each bad packet at WARNING: any host could fill the disk.
logging.getLogger("quic").setLevel(logging.ERROR)


class QuicTransport(NodeTransport):
    """Listens on `host` (None: all addresses, both families) and `port` (0: any)."""

    def __init__(
        self,
        identity: Identity,
        credentials: Callable[[], Credentials],
        *,
        host: str | None = None,
        port: int = 0,
        max_clients: int | None = None,
        wall_clock: Callable[[], float] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(identity, credentials, max_clients=max_clients, wall_clock=wall_clock, clock=clock)
        self._bind = host, port
        self.endpoint = Endpoint(self._accept, self._clock)
        self._client = configuration(identity, client=True)
        self._server = configuration(identity, client=False)

    def keep_room_for(self, known: Callable[[str], bool]) -> None:
        """Addresses for which `known` is true (keys of `address_key`) find a place whatever others do."""
        self.endpoint.admission.known = known

    async def _listen(self) -> int:
        return self.endpoint.open(*self._bind)

    async def _stop_listening(self) -> None:
        self.endpoint.close()

    def attempt(self, address: PeerAddress, dial: PendingDial) -> Attempt:
        connection = QuicStreamConnection(self.endpoint, MeshConnection(self._client), self._clock, dialled=True)
        connection.dial = dial
        connection.connect(address)
        return connection

    def _attach(self, attempt: Attempt, make: Callable[[StreamConnection], NodeLink]) -> NodeLink:
        connection = cast(QuicStreamConnection, attempt)
        connection.dial = None
        link = make(connection)
        connection.attach(link)
        return link

    def _accept(self, original: bytes, retried: bytes | None, source: SocketAddress) -> DatagramRoute:
        quic = MeshConnection(
            self._server, original_destination_connection_id=original, retry_source_connection_id=retried
        )
        connection = QuicStreamConnection(self.endpoint, quic, self._clock, dialled=False)
        connection.where = source
        connection.attach(self.accept(connection))
        return connection


class QuicStreamConnection:
    """`StreamConnection` and `Attempt` on one QUIC connection."""

    def __init__(self, endpoint: Endpoint, connection: MeshConnection, clock: Clock, *, dialled: bool) -> None:
        self.dial: PendingDial | None = None
        self.where: SocketAddress = ("", 0)
        self._endpoint = endpoint
        self._quic = connection
        self._clock = clock
        self._dialled = dialled
        self._loop = asyncio.get_running_loop()
        self._user: StreamConnectionUser | None = None
        # aioquic issues the same id again when the packet that announced it is lost.
        self._ids: dict[bytes, None] = {connection.host_cid: None}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._soon: asyncio.Handle | None = None
        self._over = False
        self.mute = True
        endpoint.routes[connection.host_cid] = self

    # -- connection_protocol.StreamConnection

    @property
    def dialled(self) -> bool:
        return self._dialled

    @property
    def address(self) -> PeerAddress:
        return to_address(self._quic.get_peer_address() or self.where)

    @property
    def rtt(self) -> float:
        return self._quic.rtt

    def send(self, stream: int, data: bytes | memoryview, end: bool = False) -> None:
        if self._over:
            return
        try:
            self._quic.send_stream_data(stream, cast(bytes, data), end)
        except (RuntimeError, ValueError):  # the peer has ended the stream; the event follows
            return
        self._transmit_soon()

    def unacknowledged(self, stream: int) -> int:
        return self._quic.unacknowledged(stream)

    def grant(self, stream: int, limit: int) -> None:
        self._quic.grant(stream, limit)
        self._transmit_soon()

    def reset(self, stream: int, code: int) -> None:
        try:
            self._quic.reset_stream(stream, code)
        except ValueError:
            return
        self._transmit_soon()

    def stop(self, stream: int, code: int) -> None:
        try:
            self._quic.stop_stream(stream, code)
        except ValueError:
            return
        self._transmit_soon()

    def allow_streams(self) -> None:
        self._quic.allow_streams()
        self._endpoint.authenticated(self)
        self._transmit_soon()

    def close(self, reason: str) -> None:
        if self._over:
            return
        self._quic.close(error_code=CLOSED, reason_phrase=reason)
        last = self._flush()
        if last is not None:
            self._endpoint.keep_close(tuple(self._ids), last)
        self._end()

    # -- happy_eyeballs.Attempt

    def connect(self, address: PeerAddress) -> None:
        """Start the QUIC handshake."""
        try:
            self.where = self._endpoint.sockaddr(address)
        except ValueError:
            self._loop.call_soon(self._fail, "not an IP address")
            return
        self._quic.connect(self.where, now=self._clock())
        self._transmit_soon()

    def drop(self) -> None:
        self.dial = None
        self.close("not needed")

    def attach(self, user: StreamConnectionUser) -> None:
        """Give `user` the events from now on."""
        self._user = user
        self._quic.unread = user.unread

    # -- endpoint.DatagramRoute

    def receive(self, data: bytes, source: SocketAddress, now: float) -> None:
        if self._over:
            return
        try:
            self._quic.receive_datagram(data, source, now)
        except Exception as error:  # noqa: BLE001 - another's code on a hostile peer's bytes: see the law
            self._lose(f"QUIC failed: {type(error).__name__}")

    def received(self) -> None:
        if self._over:
            return
        if not self._quic.begun and not self._dialled:
            self._lose("no QUIC")
            return
        self._happen()
        if not self._over and self._user is not None:
            self._user.acknowledged()
        self._transmit()

    def evict(self, reason: str) -> None:
        self._lose(reason)

    # -- internals

    def _happen(self) -> None:
        """Pass on aioquic's events."""
        while not self._over and (event := self._quic.next_event()) is not None:
            user = self._user
            if isinstance(event, events.StreamDataReceived):
                self.mute = False
                if user is not None:
                    user.data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, events.StreamReset):
                if user is not None:
                    user.was_reset(event.stream_id, event.error_code)
            elif isinstance(event, events.StopSendingReceived):
                if user is not None:
                    user.was_stopped(event.stream_id)
            elif isinstance(event, events.ConnectionIdIssued):
                self._ids[event.connection_id] = None
                self._endpoint.routes[event.connection_id] = self
            elif isinstance(event, events.ConnectionIdRetired):
                self._ids.pop(event.connection_id, None)
                self._endpoint.routes.pop(event.connection_id, None)
            elif isinstance(event, events.HandshakeCompleted) and self.dial is not None:
                self._check_pin(self.dial)

    def _check_pin(self, dial: PendingDial) -> None:
        try:
            node = self._quic.peer_node()
        except PeerRefused:
            node = None
        if node is None or not dial.matches(node):
            self._fail("another node answers there", wrong_node=True)
            return
        dial.ready(self, NodeId(node))

    def _transmit_soon(self) -> None:
        if self._soon is None and not self._over:
            self._soon = self._loop.call_soon(self._transmit)

    def _transmit(self) -> None:
        if self._over:
            return
        if self._quic.alive:
            self._flush()
        if not self._over and not self._quic.alive:
            self._flush()
            self._lose(self._quic.reason)
            return
        self._arm()

    def _flush(self) -> bytes | None:
        """Send pending datagrams; return the last one."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._quic.get_peer_address() is None:
            return None
        last, reachable = None, True
        for data, destination in self._quic.datagrams_to_send(now=self._clock()):
            last = data
            reachable = self._endpoint.send(data, cast(SocketAddress, destination)) and reachable
        if not reachable and self.dial is not None:
            self._fail("no route to the host")
        return last

    def _arm(self) -> None:
        """One timer, moved only to fire earlier."""
        if self._over:
            return
        at = self._quic.get_timer()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - self._clock()), self._timed)

    def _timed(self) -> None:
        self._timer = None
        at, now = self._quic.get_timer(), self._clock()
        if at is not None and now >= at:
            self._quic.handle_timer(now=now)
            self._happen()
            self._transmit()
        else:
            self._arm()

    def _fail(self, reason: str, *, wrong_node: bool = False) -> None:
        """The dialled address failed."""
        dial, self.dial = self.dial, None
        self.close(reason)
        if dial is not None:
            dial.failed(self, reason, wrong_node)

    def _lose(self, reason: str) -> None:
        """The connection is lost."""
        if self._over:
            return
        self._end()
        user, dial = self._user, self.dial
        self.dial = None
        if user is not None:
            user.lost(reason)
        if dial is not None:
            dial.failed(self, reason)

    def _end(self) -> None:
        self._over = True
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None
        for connection_id in (*self._ids, self._quic.original_destination_connection_id):
            if self._endpoint.routes.get(connection_id) is self:
                del self._endpoint.routes[connection_id]
        self._endpoint.authenticated(self)
