"""What streams need of whatever carries them: bytes in order, numbered streams, credit, an end.

Law: a carrier knows nothing of messages, kinds or who may come in; its user knows nothing of datagrams.
"""

from __future__ import annotations

from typing import Protocol

from meshllm.core.records import PeerAddress

# The stream that the dialler opens first, for the handshake and the messages. It has no kind byte.
CONTROL = 0

# Why a stream is reset: for logs, nobody decides by it.
ENDED = 0
ABORTED = 1
REFUSED = 2


class StreamConnection(Protocol):
    """Carries streams, numbered as in QUIC: the dialler opens 0, 4, 8..., the acceptor 1, 5, 9... (RFC 9000, 2.1)."""

    @property
    def dialled(self) -> bool:
        """Whether this end dialled."""

    @property
    def address(self) -> PeerAddress:
        """Where the peer is."""

    @property
    def rtt(self) -> float:
        """The smoothed round trip in seconds."""

    def send(self, stream: int, data: bytes | memoryview, end: bool = False) -> None:
        """More bytes of a stream; the first ones open it. `end`: the last. Nothing happens if the stream is over."""

    def unacknowledged(self, stream: int) -> int:
        """Bytes handed to `send` that the peer has not confirmed."""

    def grant(self, stream: int, limit: int) -> None:
        """The peer may send up to that position."""

    def reset(self, stream: int, code: int) -> None:
        """Give up sending; what is under way may be lost."""

    def stop(self, stream: int, code: int) -> None:
        """Ask the peer to give up sending."""

    def trust(self) -> None:
        """The peer has proved who it is: it may open streams."""

    def close(self, reason: str) -> None:
        """End everything, and tell the peer why. The user hears nothing more."""


class StreamConnectionUser(Protocol):
    """Who hears of what a carrier brings."""

    def data(self, stream: int, data: bytes, end: bool) -> None:
        """Bytes of a stream, in order; `end` after the last (then `data` may be empty)."""

    def was_reset(self, stream: int, code: int) -> None:
        """The peer gave up sending."""

    def was_stopped(self, stream: int) -> None:
        """The peer wants no more of what we send."""

    def acknowledged(self) -> None:
        """The peer has confirmed something: there may be room again."""

    def lost(self, reason: str) -> None:
        """It is over. Nothing else comes."""

    def unread(self) -> int:
        """Bytes that `data` has brought and that nobody has taken."""
