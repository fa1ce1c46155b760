"""One target as the gateway sees it: its connection pool, its slots, a bounded first-come-first-served queue.

It also holds how the target has been doing: its load by others, its times to the first byte, and its rest after
failures. A resting target gets a request only if no other target can take it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from meshllm.core.routing.first_byte_timeout import FirstByteTimes
from meshllm.core.routing.routes import Target, TargetKind, TargetOffer
from meshllm.web.gateway.crashed_requests import CrashSuspects
from meshllm.web.http.client import UpstreamPool

# A backend decides for itself how much it does at a time; the limit keeps one from taking all our connections.
BACKEND_SLOTS = 512
# Waiting requests per slot: enough for a burst of agents' sub-tasks, few enough that the last one is served in minutes.
QUEUE_PER_SLOT = 16
QUEUE_MIN = 32
# The part of a queue that requests of peers may fill; the rest is for this node's own callers.
PEER_QUEUE_SHARE = 0.5
# How many requests may pass one that waits: then it is next, so that no request waits for ever.
MAX_PASSED = 16
# Requests sent to a peer that loads the model for them: what its queue takes of peers at least (`PEER_QUEUE_SHARE`).
# The others wait here, as many as may come while a model is loaded.
LOADING_SLOTS = 12
LOADING_QUEUE = 512
# After a failure a target rests, twice as long after each further one; after an "overloaded", a moment (seconds).
REST_BASE_SECONDS = 0.5
REST_CAP_SECONDS = 30.0
BUSY_SECONDS = 1.0
# Models of one target whose failures are remembered; a backend may list thousands.
MAX_RESTING_MODELS = 256


class SlotWaiter(Protocol):
    """A request in a target's queue."""

    def slot_granted(self, queue: TargetQueue) -> None:
        """A slot of `queue` is taken for you; return it with `release`."""


class TargetUser(Protocol):
    """A request that a target is working on."""

    @property
    def digest(self) -> bytes:
        """What the request is remembered by if an engine dies of it."""

    def target_down(self) -> None:
        """The target's node is believed to be dead: try another target if no response has begun."""


class CallerRank(IntEnum):
    """Whose request it is: the lower rank first."""

    LOCAL = 0  # of this node's callers
    PEER = 1  # of the owner's other machines
    GUEST = 2


_LOCAL, _GUEST = CallerRank.LOCAL, CallerRank.GUEST  # see `routes.ENGINE`


@dataclass(slots=True)
class _Waiting:
    """A waiting request. `passed`: how many later ones got a slot before it."""

    cost: int
    rank: CallerRank
    passed: int = 0


@dataclass(slots=True)
class _Rest:
    """The rest after consecutive failures."""

    until: float = 0.0
    failures: int = 0

    def fail(self, now: float) -> None:
        """Count a failure. Failures during a rest count once: they have one cause."""
        if now >= self.until:
            self.until = now + min(REST_CAP_SECONDS, REST_BASE_SECONDS * 2.0 ** min(self.failures, 16))
            self.failures += 1


class TargetQueue:
    """A target's slots and queue. Synchronous; owns no task."""

    def __init__(
        self, target: Target, pool: UpstreamPool, on_change: Callable[[], None] | None = None, *, model: str = ""
    ) -> None:
        """`on_change`: called when requests start, wait or end here. `model`: the model of an engine."""
        self.target = target
        self.model = model
        self.pool = pool
        self.limit = target.slots or BACKEND_SLOTS
        queued = target.kind is TargetKind.ENGINE or (target.kind is TargetKind.PEER and target.slots)
        self.queue_limit = max(QUEUE_MIN, QUEUE_PER_SLOT * self.limit) if queued else QUEUE_MIN
        self.active = 0
        self.mean_seconds = 5.0
        # Generation speed in the last response that reported one, to callers of this node and to peers.
        self.tokens_per_second: float | None = None
        self.offer = TargetOffer(target)
        self.users: dict[TargetUser, None] = {}
        self.first_byte = FirstByteTimes()
        self.label = _label(target)
        self.id = _id(target, model)
        self._rest = _Rest()
        self._model_rests: dict[str, _Rest] = {}
        self._others = 0
        # The most of our requests that were active at once since the last load report, as far as one has ended.
        self._peak = 0
        self._on_change = on_change
        # A dict keeps the order of arrival, and a waiter leaves in constant time.
        self._waiting: dict[SlotWaiter, _Waiting] = {}
        # Active requests of several tasks, and the slots that guests hold.
        self._lists = self._guest_slots = 0
        # Whether it has had a request of a guest.
        self.had_guest = False
        # Whether a response has begun here.
        self.has_answered = False
        # Of an engine: who is to blame if its process dies.
        self.suspects = CrashSuspects()

    @property
    def name(self) -> str:
        """The target for people: a peer by its name."""
        return self.offer.name if self.target.kind is TargetKind.PEER and self.offer.name else self.label

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    @property
    def free(self) -> bool:
        """Whether a request of one task would be processed at once, as far as is known."""
        return not self._waiting and self.active + self._others < self.limit

    @property
    def busy(self) -> float:
        """Active and waiting requests per slot: ours, and the known ones of other nodes."""
        return (self.active + len(self._waiting) + self._others) / self.limit

    def update(self, offer: TargetOffer) -> None:
        """Take over newer facts about the target."""
        if offer.load is not None and offer.load is not self.offer.load:
            # A load report includes our own requests, also those that have ended while it was on its way. A report
            # already seen does not include those sent since.
            self._others = max(0, offer.load.active + offer.load.waiting - max(self.active, self._peak))
            self._peak = self.active
        if not offer.loaded:
            self.limit, self.queue_limit = LOADING_SLOTS, LOADING_QUEUE
        self.offer = offer

    def take(self, cost: int = 1, rank: CallerRank = _LOCAL) -> bool:
        """Take the slots for a request of `cost` tasks, if they are free and kept for no other.

        Those that wait do not fit, or they would have got the slots: a smaller request may pass them, some times.
        """
        if cost == 1 and rank is not _GUEST and not self._waiting and self.active < self.limit:
            self.active += 1  # the usual case
            self._changed()
            return True
        if not self._fits(cost, rank):
            return False
        if self._waiting:
            first = next(iter(self._waiting.values()))
            if first.passed >= MAX_PASSED and self._may_ever_fit(first):
                return False
            first.passed += 1
        self._hold(cost, rank, 1)
        self._changed()
        return True

    def holds(self, cost: int) -> int:
        """The slots that a request of `cost` tasks holds: all but one at most, which is left to other requests."""
        return 1 if cost == 1 else min(cost, max(1, self.limit - 1))

    def _fits(self, cost: int, rank: CallerRank) -> bool:
        limit = self.limit
        if limit == 1 and self._lists and cost == 1:
            limit = 2  # the engine takes it before the next prompt of the list
        slots = 1 if cost == 1 else self.holds(cost)
        if rank is _GUEST and self._guest_slots + slots > max(1, self.limit - 1):
            return False
        return self.active + slots <= limit

    def _hold(self, cost: int, rank: CallerRank, sign: int) -> None:
        slots = 1 if cost == 1 else self.holds(cost)
        self.active += sign * slots
        if cost > 1:
            self._lists += sign
        if rank is _GUEST:
            self._guest_slots += sign * slots
            self.had_guest = True

    def join(self, waiter: SlotWaiter, cost: int = 1, rank: CallerRank = _LOCAL, *, bounded: bool = True) -> bool:
        """Join the queue; False if it is full, or the part of it that peers may fill. Not `bounded`: it never is."""
        share = 1.0 if rank is _LOCAL else PEER_QUEUE_SHARE
        if bounded and len(self._waiting) >= self.queue_limit * share:
            return False
        self._waiting[waiter] = _Waiting(cost, rank)
        self._changed()
        return True

    def leave(self, waiter: SlotWaiter) -> None:
        """Leave the queue."""
        if waiter in self._waiting:
            del self._waiting[waiter]
            self._grant()  # those behind it may fit
            self._changed()

    def position(self, waiter: SlotWaiter) -> int:
        """Number of requests in the queue that come before `waiter`, as it is now."""
        own = self._waiting.get(waiter)
        if own is None:
            return 0
        ahead, passed = 0, False
        for other, waiting in self._waiting.items():
            passed = passed or other is waiter
            if waiting.rank < own.rank or (waiting.rank is own.rank and not passed):
                ahead += 1
        return ahead

    def release(self, seconds: float, cost: int = 1, rank: CallerRank = _LOCAL) -> None:
        """Return the slots of a request after `seconds` of use; the next in the queue gets them."""
        if self.active > self._peak:
            self._peak = self.active
        if cost == 1 and rank is not _GUEST:
            self.active -= 1  # the usual case
        else:
            self._hold(cost, rank, -1)
        self.mean_seconds += 0.2 * (min(seconds, 600.0) - self.mean_seconds)
        if self._waiting:
            self._grant()
        self._changed()

    def _grant(self) -> None:
        while self._waiting and (waiter := self._next()) is not None:
            waiting = self._waiting.pop(waiter)
            self._hold(waiting.cost, waiting.rank, 1)
            waiter.slot_granted(self)

    def _next(self) -> SlotWaiter | None:
        """The waiting request that gets the free slots: the best rank first, in the order of arrival, if it fits.

        A request that others have passed `MAX_PASSED` times is next, whatever its rank, and slots are kept for it.
        """
        oldest = next(iter(self._waiting))
        first = self._waiting[oldest]
        if self.active >= self.limit + (self.limit == 1 and self._lists > 0):
            return None
        if first.passed >= MAX_PASSED and self._may_ever_fit(first):
            return oldest if self._fits(first.cost, first.rank) else None
        found: SlotWaiter | None = None
        best = _GUEST + 1
        for waiter, waiting in self._waiting.items():
            if waiting.rank < best and self._fits(waiting.cost, waiting.rank):
                found, best = waiter, waiting.rank
                if best == _LOCAL:
                    break
        if found is not None and found is not oldest:
            first.passed += 1
        return found

    def _may_ever_fit(self, waiting: _Waiting) -> bool:
        """Whether slots may be kept for `waiting`: not while other guests hold the share of guests."""
        slots = self.holds(waiting.cost)
        return waiting.rank is not _GUEST or self._guest_slots + slots <= max(1, self.limit - 1)

    @property
    def in_progress(self) -> list[bytes]:
        """The digests of the requests that the target is working on."""
        return [user.digest for user in self.users]

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def retry_after(self) -> int:
        """Seconds after which a refused caller may find a free slot, judged by how long requests have been taking."""
        return max(1, min(60, round(self.mean_seconds * (len(self._waiting) + 1) / self.limit / 2)))

    # -- failures

    def resting(self, model: str, now: float) -> bool:
        """Whether the target, or `model` there, has failed a moment ago."""
        if self._rest.until > now:
            return True
        rest = self._model_rests.get(model)
        return rest is not None and rest.until > now

    def failed(self, now: float, model: str | None = None) -> None:
        """A request for `model` failed; None: the whole target failed."""
        if model is None:
            self._rest.fail(now)
            return
        rest = self._model_rests.get(model)
        if rest is None:
            if len(self._model_rests) >= MAX_RESTING_MODELS:
                del self._model_rests[next(iter(self._model_rests))]
            rest = self._model_rests[model] = _Rest()
        rest.fail(now)

    def overloaded(self, now: float) -> None:
        """The target answered that it is overloaded."""
        self._rest.until = max(self._rest.until, now + BUSY_SECONDS)

    def answered(self, model: str) -> None:
        """A response for `model` has begun: the target works, and so does the model."""
        self.has_answered = True
        if self.suspects.there:
            self.suspects.answered()
        if self._rest.failures or self._rest.until:
            self._rest = _Rest()
        if self._model_rests:
            self._model_rests.pop(model, None)


def _label(target: Target) -> str:
    """The target in responses and logs: "engine", "backend URL" or "peer" with the first digits of its id."""
    if target.kind is TargetKind.ENGINE:
        return "engine"
    return f"peer {target.address[:10]}" if target.kind is TargetKind.PEER else f"backend {target.address}"


def _id(target: Target, model: str) -> str:
    """The target in metrics and the status, the same in every run of the engine: KIND:MODEL, URL or NODE/MODEL."""
    match target.kind:
        case TargetKind.ENGINE:
            return f"engine:{model}"
        case TargetKind.BACKEND:
            return f"backend:{target.address}"
        case TargetKind.PEER:
            return f"peer:{target.address[:10]}/{target.model}"
