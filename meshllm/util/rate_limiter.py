"""How fast bytes may be given away.

Law: time is an argument. Who asks for less comes no later than who asks for more: bytes are let out in the order in
which they were asked for.
"""

from __future__ import annotations

from typing import Final

# What may go at once after a silence, in seconds of the rate: short, so that it cannot be felt.
BURST_SECONDS: Final = 0.05


class RateLimiter:
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
