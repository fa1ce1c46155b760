"""How much a peer may send before it must wait: windows for bytes, buckets for things that come one by one.

Law: a window moves on only as far as its reader has consumed, so what a peer can make this node hold is bounded per
stream and per link, whatever it does. Nothing here knows of sockets or clocks; time is an argument.
"""

from __future__ import annotations

from meshllm.net.base import STREAM_CREDIT_BYTES

# What a new stream may send at once; it grows to STREAM_CREDIT_BYTES as it is used. Most requests and answers fit.
FIRST_CREDIT_BYTES = 64 << 10
# All windows of a link together may have grown by so much: one fast stream and thirty more beside it.
GROWN_CREDIT_BYTES = 32 << 20
# What a link may have under way and unread in all: 500 streams that stand still with all their first credit, beside
# those that have grown. It keeps an honest link from ever waiting for it.
LINK_CREDIT_BYTES = GROWN_CREDIT_BYTES + (32 << 20)
# The same before the peer has proved who it is: a handshake takes 1 KiB.
UNAUTHENTICATED_CREDIT_BYTES = 16 << 10
# What all streams of a link may hand to the carrier unacknowledged, and one of them in any case (a few datagrams).
LINK_UNSENT_BYTES = 16 << 20
LEAST_UNSENT_BYTES = 16 << 10


class FlowBudget:
    """Bytes that the windows of one link share for growing."""

    __slots__ = ("left",)

    def __init__(self, left: int = GROWN_CREDIT_BYTES) -> None:
        self.left = left

    def take(self, amount: int) -> bool:
        """Whether there was that much left; then it is taken."""
        if amount > self.left:
            return False
        self.left -= amount
        return True


class FlowWindow:
    """What one stream's peer may have sent by now: `limit` is a position in the stream, in bytes from its beginning."""

    __slots__ = ("_budget", "consumed", "limit", "size")

    def __init__(self, budget: FlowBudget, size: int = FIRST_CREDIT_BYTES) -> None:
        self._budget = budget
        self.size = size
        self.limit = size
        self.consumed = 0

    def consume(self, count: int) -> int | None:
        """`count` more bytes have been read. The new limit to tell the peer, when it is worth telling."""
        self.consumed += count
        if self.limit - self.consumed > self.size // 2:
            return None
        if self.size < STREAM_CREDIT_BYTES and self._budget.take(self.size):
            self.size *= 2
        self.limit = self.consumed + self.size
        return self.limit

    def release(self) -> None:
        """The stream is over: what it had grown by is for others."""
        self._budget.left += self.size - FIRST_CREDIT_BYTES
        self.size = FIRST_CREDIT_BYTES


def unsent_limit(streams: int) -> int:
    """How many bytes one stream may have handed over unacknowledged, when so many streams are open."""
    return max(LEAST_UNSENT_BYTES, min(STREAM_CREDIT_BYTES, LINK_UNSENT_BYTES // max(1, streams)))
