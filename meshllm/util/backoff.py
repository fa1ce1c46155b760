"""Exponential backoff: the delay before a retry."""

from __future__ import annotations

from typing import Protocol

# 2 ** 16 times any base is above every cap in use; a larger exponent would overflow a float after 1,024 failures.
MAX_DOUBLINGS = 16
JITTER = 0.2


class RandomSource(Protocol):
    """The part of `random.Random` that jitter needs."""

    def random(self) -> float:
        """0 <= x < 1."""


def backoff(attempt: int, *, base: float, cap: float, rng: RandomSource | None = None) -> float:
    """Seconds before retry number `attempt` (0 is the first): `base` doubled each time, at most `cap`.

    With `rng`, up to 20 % is added at random, so that nodes which failed together do not retry together.
    """
    delay = min(cap, base * 2.0 ** min(max(attempt, 0), MAX_DOUBLINGS))
    return delay if rng is None else delay * (1.0 + JITTER * rng.random())
