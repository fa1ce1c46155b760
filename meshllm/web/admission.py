"""How many requests a target works on at a time, and who waits for it: a bounded queue, first come, first served."""

from __future__ import annotations

from typing import Protocol

from meshllm.core.routing import Target, TargetKind
from meshllm.web.upstream import UpstreamPool

# What a backend can do at a time is its own affair; this only keeps one from taking all our connections.
BACKEND_SLOTS = 512
# Waiting requests per slot: enough for a burst of agents' sub-tasks, few enough that the last one is served in minutes.
QUEUE_PER_SLOT = 16
QUEUE_MIN = 32


class Waiter(Protocol):
    """Who waits for a slot."""

    def granted(self, desk: TargetDesk) -> None:
        """A slot of `desk` is yours; give it back with `release`."""


class TargetDesk:
    """One target as the gateway sees it: its connections, its free slots, its queue. Holds no task and no lock."""

    def __init__(self, target: Target, pool: UpstreamPool) -> None:
        self.target = target
        self.pool = pool
        self.limit = target.slots or BACKEND_SLOTS
        self.queue_limit = (
            max(QUEUE_MIN, QUEUE_PER_SLOT * self.limit) if target.kind is TargetKind.ENGINE else QUEUE_MIN
        )
        self.active = 0
        self.mean_seconds = 5.0
        # A dict keeps the order of arrival and lets any waiter leave at once.
        self._waiting: dict[Waiter, None] = {}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def take(self) -> bool:
        """A slot, if one is free and nobody has been waiting longer."""
        if self.active >= self.limit or self._waiting:
            return False
        self.active += 1
        return True

    def join(self, waiter: Waiter) -> bool:
        """Wait for a slot; False if the queue is full."""
        if len(self._waiting) >= self.queue_limit:
            return False
        self._waiting[waiter] = None
        return True

    def leave(self, waiter: Waiter) -> None:
        """No longer wait."""
        self._waiting.pop(waiter, None)

    def place(self, waiter: Waiter) -> int:
        """How many are served before `waiter`."""
        return next((place for place, other in enumerate(self._waiting) if other is waiter), 0)

    def release(self, seconds: float) -> None:
        """A slot is free again after `seconds` of use; the longest waiting gets it."""
        self.active -= 1
        self.mean_seconds += 0.2 * (min(seconds, 600.0) - self.mean_seconds)
        while self._waiting and self.active < self.limit:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            self.active += 1
            waiter.granted(self)

    def retry_after(self) -> int:
        """Seconds after which a refused caller may find room, judged by how long requests have been taking."""
        return max(1, min(60, round(self.mean_seconds * (len(self._waiting) + 1) / self.limit / 2)))
