"""Flow control of streams and links: how much a peer may send before this node has read it.

Invariant: a window moves only as far as its reader has consumed, so the bytes held for a peer are bounded per stream
and per link.
"""

from __future__ import annotations

from meshllm.net.base import STREAM_CREDIT_BYTES

# Window of a new stream; it grows to STREAM_CREDIT_BYTES with use. Most requests and answers fit.
FIRST_CREDIT_BYTES = 64 << 10
# Growth of all windows of a link together: one fast stream and thirty more.
GROWN_CREDIT_BYTES = 32 << 20
# Bytes in flight and unread on a link: 500 idle streams with their first window, beside the grown ones. A correct link
# never waits for it.
LINK_CREDIT_BYTES = GROWN_CREDIT_BYTES + (32 << 20)
# The same before the peer is authenticated; a handshake takes 1 KiB.
UNAUTHENTICATED_CREDIT_BYTES = 16 << 10
# Unacknowledged bytes of all streams of a link, and the minimum of each stream (a few datagrams).
LINK_UNSENT_BYTES = 16 << 20
LEAST_UNSENT_BYTES = 16 << 10


class FlowBudget:
    """Bytes by which the windows of one link may still grow."""

    __slots__ = ("left",)

    def __init__(self, left: int = GROWN_CREDIT_BYTES) -> None:
        self.left = left

    def take(self, amount: int) -> bool:
        """Take `amount` if it is left; whether it was."""
        if amount > self.left:
            return False
        self.left -= amount
        return True


class FlowWindow:
    """The receive window of a stream. `limit`: the offset up to which the peer may send."""

    __slots__ = ("_budget", "consumed", "limit", "size")

    def __init__(self, budget: FlowBudget, size: int = FIRST_CREDIT_BYTES) -> None:
        self._budget = budget
        self.size = size
        self.limit = size
        self.consumed = 0

    def consume(self, count: int) -> int | None:
        """`count` more bytes were read. The new limit, if it is worth an update."""
        self.consumed += count
        if self.limit - self.consumed > self.size // 2:
            return None
        if self.size < STREAM_CREDIT_BYTES and self._budget.take(self.size):
            self.size *= 2
        self.limit = self.consumed + self.size
        return self.limit

    def release(self) -> None:
        """The stream has ended: return its growth to the budget."""
        self._budget.left += self.size - FIRST_CREDIT_BYTES
        self.size = FIRST_CREDIT_BYTES


def unsent_limit(streams: int) -> int:
    """Unacknowledged bytes allowed for one stream when `streams` are open."""
    return max(LEAST_UNSENT_BYTES, min(STREAM_CREDIT_BYTES, LINK_UNSENT_BYTES // max(1, streams)))
