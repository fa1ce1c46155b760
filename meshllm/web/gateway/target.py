"""How many requests a target works on at a time, and who waits for it: a bounded queue, first come, first served.

Beside that a desk keeps what is known of its target now: how busy others keep it, how long its first byte takes, and
whether it is resting after a failure. A target that is resting is asked only if there is no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from meshllm.core.routing.first_byte_timeout import FirstByteTimes
from meshllm.core.routing.routes import Target, TargetKind, TargetOffer
from meshllm.util.backoff import backoff
from meshllm.web.http.client import UpstreamPool

# What a backend can do at a time is its own affair; this only keeps one from taking all our connections.
BACKEND_SLOTS = 512
# Waiting requests per slot: enough for a burst of agents' sub-tasks, few enough that the last one is served in minutes.
QUEUE_PER_SLOT = 16
QUEUE_MIN = 32
# Of a queue only so much is for the requests of peers: however many they send, there is room for this node's callers.
GUESTS_SHARE = 0.5
# After a failure a target rests, doubling with each one that follows; after having said that it is busy, a moment.
REST_BASE_SECONDS = 0.5
REST_CAP_SECONDS = 30.0
BUSY_SECONDS = 1.0


class SlotWaiter(Protocol):
    """Who waits for a slot."""

    def granted(self, desk: TargetQueue) -> None:
        """A slot of `desk` is yours; give it back with `release`."""


class UpstreamUser(Protocol):
    """Who waits for an answer of a target."""

    def deserted(self) -> None:
        """The target is believed to be gone; what has not begun to answer may be asked elsewhere."""


class TargetQueue:
    """One target as the gateway sees it: its connections, its free slots, its queue. Holds no task and no lock."""

    def __init__(self, target: Target, pool: UpstreamPool, changed: Callable[[], None] | None = None) -> None:
        """`changed` is called whenever more or fewer are at work or waiting."""
        self.target = target
        self.pool = pool
        self.limit = target.slots or BACKEND_SLOTS
        queued = target.kind is TargetKind.ENGINE or (target.kind is TargetKind.PEER and target.slots)
        self.queue_limit = max(QUEUE_MIN, QUEUE_PER_SLOT * self.limit) if queued else QUEUE_MIN
        self.active = 0
        self.mean_seconds = 5.0
        # Of the last answer that told (None: none did), as this node's callers and guests had it.
        self.tokens_per_second: float | None = None
        self.offer = TargetOffer(target)
        self.askers: dict[UpstreamUser, None] = {}
        self.first_byte = FirstByteTimes()
        self.resting_until = 0.0
        self._failures = 0
        self._others = 0
        self._changed = changed
        # A dict keeps the order of arrival and lets any waiter leave at once.
        self._waiting: dict[SlotWaiter, None] = {}

    @property
    def host(self) -> str:
        """Who answers, as callers are told: "engine", "backend URL", or "peer" with the first digits of its id."""
        kind, address = self.target.kind, self.target.address
        if kind is TargetKind.ENGINE:
            return "engine"
        return f"peer {address[:10]}" if kind is TargetKind.PEER else f"backend {address}"

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def free(self) -> bool:
        """Whether a request would be worked on at once, as far as is known."""
        return not self._waiting and self.active + self._others < self.limit

    @property
    def busy(self) -> float:
        """Requests at work and waiting, ours and what is known of others', per slot."""
        return (self.active + len(self._waiting) + self._others) / self.limit

    def update(self, offer: TargetOffer) -> None:
        """What is known of the target now."""
        if offer.load is not None and offer.load is not self.offer.load:
            # It counts ours as well. An old report says nothing new: what we have sent since is not in it.
            self._others = max(0, offer.load.active + offer.load.waiting - self.active)
        self.offer = offer

    def take(self) -> bool:
        """A slot, if one is free and nobody has been waiting longer."""
        if self.active >= self.limit or self._waiting:
            return False
        self.active += 1
        self._tell()
        return True

    def join(self, waiter: SlotWaiter, *, guest: bool = False) -> bool:
        """Wait for a slot; False if the queue is full, or a `guest`'s part of it."""
        if len(self._waiting) >= self.queue_limit * (GUESTS_SHARE if guest else 1.0):
            return False
        self._waiting[waiter] = None
        self._tell()
        return True

    def leave(self, waiter: SlotWaiter) -> None:
        """No longer wait."""
        if waiter in self._waiting:
            del self._waiting[waiter]
            self._tell()

    def place(self, waiter: SlotWaiter) -> int:
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
        self._tell()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed()

    def retry_after(self) -> int:
        """Seconds after which a refused caller may find room, judged by how long requests have been taking."""
        return max(1, min(60, round(self.mean_seconds * (len(self._waiting) + 1) / self.limit / 2)))

    # -- how it has been doing

    def failed(self, now: float) -> None:
        """A request failed there: it rests. All that fail together, as when it dies, are one failure."""
        if now >= self.resting_until:
            self.resting_until = now + backoff(self._failures, base=REST_BASE_SECONDS, cap=REST_CAP_SECONDS)
            self._failures += 1

    def overloaded(self, now: float) -> None:
        """It says that it has no room for now."""
        self.resting_until = max(self.resting_until, now + BUSY_SECONDS)

    def answered(self) -> None:
        """It has begun to answer: whatever was wrong is over."""
        self._failures = 0
        self.resting_until = 0.0
