"""Deadlines by name: the one place where the mesh's parts keep what is due when.

Law: a key has at most one deadline; setting it again replaces the old one. Times are the caller's clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

# What it is, and for which node (empty: for none in particular).
Key = tuple[str, bytes]
# Replaced and cancelled deadlines stay in the heap until they surface; beyond this many it is swept.
STALE_LIMIT = 256


class Timers:
    """A heap of deadlines with replacement and cancelling."""

    def __init__(self) -> None:
        self._at: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def set(self, what: str, at: float, node: bytes = b"") -> None:
        """`what` (about `node`) is due at `at`, and no longer when it was before."""
        key = (what, node)
        self._at[key] = at
        heappush(self._heap, (at, key))
        if len(self._heap) > STALE_LIMIT + 2 * len(self._at):
            self._heap = [(time, key) for key, time in self._at.items()]
            heapify(self._heap)

    def cancel(self, what: str, node: bytes = b"") -> None:
        """It is due no more. Nothing happens if it was not."""
        self._at.pop((what, node), None)

    def at(self, what: str, node: bytes = b"") -> float | None:
        """When it is due, or None."""
        return self._at.get((what, node))

    def next(self) -> float | None:
        """The earliest deadline, or None."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[tuple[str, bytes, float]]:
        """What is due at `now`, earliest first, as (what, node, when it was due). Each is taken off as it is given.

        What is set while this runs, and due already, waits for the next call: this comes to an end.
        """
        found = []
        while (at := self.next()) is not None and at <= now:
            key = heappop(self._heap)[1]
            del self._at[key]
            found.append((key, at))
        for (what, node), at in found:
            # One that was handled before may have set this one anew: then it is not due any more.
            if (what, node) not in self._at:
                yield what, node, at

    def clear(self) -> None:
        """Nothing is due any more."""
        self._at.clear()
        self._heap.clear()
