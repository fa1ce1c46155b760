"""Bytes in all and bytes per second over the last five seconds. Time is an argument."""

from __future__ import annotations

from collections import deque
from typing import Final

# The window of `rate`, counted in buckets of one second.
WINDOW_SECONDS: Final = 5


class RateMeter:
    """Counts bytes: `total`, and `rate` over the last five seconds."""

    def __init__(self, now: float) -> None:
        self.total = 0
        self._since = now
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, count: int, now: float) -> None:
        """Count `count` more bytes."""
        self.total += count
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))
        self._forget(now)

    def rate(self, now: float) -> float:
        """Bytes per second."""
        self._forget(now)
        span = min(now - self._since, now - int(now) + WINDOW_SECONDS - 1)
        return sum(count for _, count in self._seconds) / span if span > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= int(now) - WINDOW_SECONDS:
            self._seconds.popleft()
