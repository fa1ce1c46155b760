"""aioquic's connection with strict flow control: limits follow what has been read, not what has arrived.

All access to aioquic's private attributes is in this file. aioquic raises its limits to twice what has *arrived* (gaps
included): a peer that sends one byte far ahead makes it buffer the whole gap, and the next gap may be twice as long.
Here limits move only by `grant`, and the connection's limit with what has been read. The two overridden methods of the
base, which write limits, see zero bytes arrived and so raise none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicProtocolVersion

from meshllm.core.records import NodeId
from meshllm.errors import PeerRefused
from meshllm.net.base import IDLE_SECONDS, MAX_STREAMS_PER_LINK
from meshllm.net.identity import Identity, node_of_certificate
from meshllm.net.quic.flow_control import FIRST_CREDIT_BYTES, LINK_CREDIT_BYTES, UNAUTHENTICATED_CREDIT_BYTES

if TYPE_CHECKING:
    from aioquic.quic.packet_builder import QuicPacketBuilder
    from aioquic.quic.recovery import QuicPacketSpace
    from aioquic.quic.stream import QuicStream

PROTOCOL = "mesh-llm/1"
CONNECTION_ID_BYTES = 8
# The minimum MTU of IPv6, 1280 (RFC 8200, 5), also that of common VPNs, less the headers of IPv6 (40) and UDP (8).
DATAGRAM_BYTES = 1232
# Characters shown of a peer's reason for closing.
MAX_REASON = 200
VERSIONS = [int(QuicProtocolVersion.VERSION_1)]


def configuration(identity: Identity, *, client: bool) -> QuicConfiguration:
    """The configuration of all connections of one side. The caller of `peer_node` checks the peer's certificate."""
    return QuicConfiguration(
        is_client=client,
        alpn_protocols=[PROTOCOL],
        certificate=None if client else identity.certificate,
        private_key=None if client else identity.private_key,
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=IDLE_SECONDS,
        max_data=UNAUTHENTICATED_CREDIT_BYTES,
        max_stream_data=FIRST_CREDIT_BYTES,
        max_datagram_size=DATAGRAM_BYTES,
        supported_versions=VERSIONS,
        verify_mode=0,  # ssl.CERT_NONE: there is no authority; the certificate's key is pinned
    )


class MeshConnection(QuicConnection):
    """A QUIC connection. Before `allow_streams` the peer may open one stream: the dialler's first."""

    def __init__(self, config: QuicConfiguration, **known: Any) -> None:
        super().__init__(configuration=config, **known)
        self.unread: Callable[[], int] = lambda: 0
        self._link_credit = UNAUTHENTICATED_CREDIT_BYTES
        bidirectional, unidirectional = self._local_max_streams_bidi, self._local_max_streams_uni
        bidirectional.value = bidirectional.sent = 0 if config.is_client else 1
        unidirectional.value = unidirectional.sent = 0

    def peer_node(self) -> NodeId:
        """The node id of the peer's certificate, for the dialler after the TLS handshake. Raises PeerRefused."""
        certificate = self.tls._peer_certificate
        if certificate is None:
            raise PeerRefused("The peer sent no certificate.")
        return node_of_certificate(certificate)

    def allow_streams(self) -> None:
        """The peer is authenticated: raise its limits."""
        self._link_credit = LINK_CREDIT_BYTES
        self._local_max_streams_bidi.value += MAX_STREAMS_PER_LINK

    def grant(self, stream_id: int, limit: int) -> None:
        """Allow the peer to send up to byte `limit` of the stream."""
        stream = self._streams.get(stream_id)
        if stream is not None and limit > stream.max_stream_data_local:
            stream.max_stream_data_local = limit

    def unacknowledged(self, stream_id: int) -> int:
        """Bytes written to a stream and not acknowledged."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return 0
        sender = stream.sender
        return int(sender._buffer_stop - sender._buffer_start)

    @property
    def rtt(self) -> float:
        """Smoothed round trip time in seconds; 0 before the first sample."""
        return float(self._loss._rtt_smoothed)

    @property
    def alive(self) -> bool:
        """Neither closing nor closed."""
        return self._close_event is None and self._state in (
            QuicConnectionState.FIRSTFLIGHT,
            QuicConnectionState.CONNECTED,
        )

    @property
    def begun(self) -> bool:
        """Whether the peer's first packet was valid."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def reason(self) -> str:
        """Why the connection ended, from the peer or aioquic."""
        event = self._close_event
        if event is None:
            return ""
        # The peer chose the text, and it goes to logs and terminals.
        text = "".join(letter if letter.isprintable() else "?" for letter in event.reason_phrase[:MAX_REASON])
        return text or f"error {event.error_code}"

    # -- overrides of aioquic

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        receiver = stream.receiver
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or receiver.is_finished:
            return
        arrived, receiver.highest_offset = receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder=builder, space=space, stream=stream)
        finally:
            receiver.highest_offset = arrived

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        arrived = limit.used
        if limit.value - arrived <= self._link_credit // 2:
            limit.value = max(limit.value, arrived - self._held() + self._link_credit)
        limit.used = 0
        try:
            super()._write_connection_limits(builder=builder, space=space)
        finally:
            limit.used = arrived

    def _held(self) -> int:
        """Bytes that arrived and were not read: behind gaps, or in the inboxes of streams."""
        receivers = (stream.receiver for stream in self._streams.values())
        return self.unread() + sum(
            receiver.highest_offset - receiver.starting_offset() for receiver in receivers if not receiver.is_finished
        )
