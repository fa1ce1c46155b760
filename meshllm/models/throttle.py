"""How fast bytes may be given away, and how fast they go.

Law: time is an argument. Who asks for less comes no later than who asks for more: bytes are let out in the order in
which they were asked for.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# What may go at once after a silence, in seconds of the rate: short, so that it cannot be felt.
BURST_SECONDS: Final = 0.05
# A rate is told of the last so many seconds, in steps of one.
WINDOW_SECONDS: Final = 5


class Throttle:
    """A token bucket that everybody shares: `delay` says when what is asked for may go."""

    def __init__(self) -> None:
        self._paid = float("-inf")  # when all that was let out so far has been paid for

    def delay(self, count: int, rate: float | None, now: float) -> float:
        """Seconds until `count` bytes may go at `rate` bytes per second (None: no limit). They are counted as gone."""
        if rate is None:
            self._paid = now
            return 0.0
        due = max(self._paid, now - BURST_SECONDS)
        self._paid = due + count / rate
        return max(0.0, due - now)


class Meter:
    """Bytes in all, and per second of late."""

    def __init__(self, now: float) -> None:
        self.total = 0
        self._since = now
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, count: int, now: float) -> None:
        """So many bytes more."""
        self.total += count
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        self._seconds.append((second, count))
        self._forget(now)

    def rate(self, now: float) -> float:
        """Bytes per second over the last few seconds."""
        self._forget(now)
        span = min(now - self._since, now - int(now) + WINDOW_SECONDS - 1)
        return sum(count for _, count in self._seconds) / span if span > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= int(now) - WINDOW_SECONDS:
            self._seconds.popleft()
