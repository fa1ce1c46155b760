"""Deadlines of the membership protocol: one heap for all of its parts.

Invariants: a (timer, node) pair has at most one deadline; setting it again replaces the old one.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, auto
from heapq import heapify, heappop, heappush

# Replaced and cancelled deadlines stay in the heap until they surface; beyond this many the heap is rebuilt.
STALE_LIMIT = 256


class Timer(IntEnum):
    """What is due. `ANSWER` and `DEATH` are set per node, the others once per participant."""

    ANTI_ENTROPY = auto()
    PROBE = auto()
    ANSWER = auto()
    DEATH = auto()
    JUDGE = auto()
    HEARTBEAT = auto()
    RENEW = auto()
    REFUTE = auto()
    PUBLISH_FACTS = auto()
    RECONNECT = auto()
    SAVE_PEERS = auto()
    SEEK_MODEL = auto()
    CLIENT_TABLES = auto()
    RESUBSCRIBE = auto()
    KEY_GRACE = auto()
    CERTIFICATE = auto()
    JOIN_DEADLINE = auto()
    JOIN_SYNC = auto()
    JOIN_MORE = auto()
    JOIN_RETRY = auto()
    BOARD = auto()


# The timer, and the node it is about (empty: none in particular).
Key = tuple[Timer, bytes]


class Timers:
    """A heap of deadlines with replacement and cancelling. Times are the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._at: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def set(self, timer: Timer, at: float, node: bytes = b"") -> None:
        """Make `timer` (about `node`) due at `at`, in place of an earlier deadline."""
        key = (timer, node)
        self._at[key] = at
        heappush(self._heap, (at, key))
        if len(self._heap) > STALE_LIMIT + 2 * len(self._at):
            self._heap = [(time, key) for key, time in self._at.items()]
            heapify(self._heap)

    def cancel(self, timer: Timer, node: bytes = b"") -> None:
        """Remove a deadline. Does nothing if it is not set."""
        self._at.pop((timer, node), None)

    def at(self, timer: Timer, node: bytes = b"") -> float | None:
        """The deadline of `timer`, or None."""
        return self._at.get((timer, node))

    def next(self) -> float | None:
        """The earliest deadline, or None."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[tuple[Timer, bytes, float]]:
        """Remove and yield what is due at `now`, earliest first, as (timer, node, deadline).

        A deadline that is set during the iteration waits for the next call, even if it has passed: the loop ends.
        """
        found = []
        while (at := self.next()) is not None and at <= now:
            key = heappop(self._heap)[1]
            del self._at[key]
            found.append((key, at))
        for (timer, node), at in found:
            # A handler that ran earlier in this loop may have set this timer again: then it is not due.
            if (timer, node) not in self._at:
                yield timer, node, at

    def clear(self) -> None:
        """Remove all deadlines."""
        self._at.clear()
        self._heap.clear()
