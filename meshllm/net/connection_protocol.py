"""The interface between streams and what carries them (QUIC or memory): ordered bytes on numbered streams, flow
control.

A connection has no notion of messages, stream kinds or permissions; its user has none of datagrams.
"""

from __future__ import annotations

from typing import Protocol

from meshllm.core.records import PeerAddress

# The stream that the dialler opens first, for hello and messages. It has no kind byte.
CONTROL = 0

# Reset codes of streams; only logs use them.
ENDED = 0
ABORTED = 1
REFUSED = 2


class StreamConnection(Protocol):
    """Carries streams. Numbers as in QUIC: the dialler opens 0, 4, 8..., the acceptor 1, 5, 9... (RFC
    9000, 2.1)."""

    @property
    def dialled(self) -> bool:
        """Whether this end dialled."""

    @property
    def address(self) -> PeerAddress:
        """The peer's address."""

    @property
    def rtt(self) -> float:
        """Smoothed round trip time in seconds."""

    def send(self, stream: int, data: bytes | memoryview, end: bool = False) -> None:
        """Send bytes of a stream; the first ones open it. `end`: the last. Does nothing if the stream is closed."""

    def unacknowledged(self, stream: int) -> int:
        """Bytes given to `send` that the peer has not acknowledged."""

    def grant(self, stream: int, limit: int) -> None:
        """Allow the peer to send up to byte `limit` of the stream."""

    def reset(self, stream: int, code: int) -> None:
        """Reset the sending direction; bytes in flight may be lost."""

    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to stop sending (STOP_SENDING)."""

    def allow_streams(self) -> None:
        """Allow the peer to open streams, now that it is authenticated."""

    def close(self, reason: str) -> None:
        """Close the connection and send the peer `reason`. Calls nothing of the user."""


class StreamConnectionUser(Protocol):
    """Receives the events of a connection."""

    def data(self, stream: int, data: bytes, end: bool) -> None:
        """Bytes of a stream, in order; `end` with or after the last."""

    def was_reset(self, stream: int, code: int) -> None:
        """The peer reset its sending direction."""

    def was_stopped(self, stream: int) -> None:
        """The peer asked to stop sending."""

    def acknowledged(self) -> None:
        """The peer acknowledged bytes: more may be sent."""

    def lost(self, reason: str) -> None:
        """The connection is lost; no other call follows."""

    def unread(self) -> int:
        """Bytes given to `data` that no protocol has read."""
