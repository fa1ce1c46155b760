"""Rate limits. Time is an argument: `now` in seconds, from any monotonic clock.

`TokenBucket` refuses what exceeds its rate; `RateLimiter` delays it.
"""

from __future__ import annotations

from typing import Final

# RateLimiter: what may go at once after a pause, in seconds of the rate.
BURST_SECONDS: Final = 0.05


class TokenBucket:
    """Token bucket: `rate` tokens a second, at most `burst` saved. It starts full."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` tokens and return True; False, and nothing taken, if fewer are left."""
        self._tokens = min(self._burst, self._tokens + self._rate * max(0.0, now - self._updated))
        self._updated = max(self._updated, now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True


class RateLimiter:
    """Delays shared by all senders, in the order in which they ask. The rate may change with every call."""

    def __init__(self) -> None:
        self._paid = float("-inf")  # the time at which everything sent so far is within the rate

    def delay(self, count: int, rate: float | None, now: float) -> float:
        """Count `count` bytes as sent; return the seconds to wait before sending them at `rate` bytes a second.

        `rate` None means no limit.
        """
        if rate is None:
            self._paid = now
            return 0.0
        due = max(self._paid, now - BURST_SECONDS)
        self._paid = due + count / rate
        return max(0.0, due - now)
