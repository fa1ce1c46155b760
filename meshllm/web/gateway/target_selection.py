"""Chooses the target of a request, and of each further attempt.

A host that refuses a request (overloaded, model not there, prompt too long) is not tried again. A host that fails is
tried again, but after the others. A refusal is forwarded to the caller only when no other host is left. Nothing here
waits or sends: the request asks for one decision at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from meshllm.core.routing import route_texts
from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.prefixes import PrefixHosts
from meshllm.core.routing.ranking import RankedHost, least_tokens, rank
from meshllm.core.routing.routes import ENGINE, PEER, Availability, ModelRoute, Place, Target
from meshllm.web.gateway.api_request import ApiRequest, conversation_key, text_bytes
from meshllm.web.gateway.prefix_key import prefix_key
from meshllm.web.gateway.target import BUSY_SECONDS, CallerRank, SlotWaiter, TargetQueue
from meshllm.web.gateway.upstream_errors import CONTEXT, NOT_HERE, OVERLOADED, RequestFailed, UpstreamError
from meshllm.wire.api.routes import Api

# How long a peer is avoided after "not here": its next record, which says so, takes about as long.
NOT_HERE_SECONDS = 2.0
# After this many "not here" the caller gets an error: half a minute, enough to restart a small engine.
MAX_NOT_HERE = 15
# A request that has waited until its model was loaded is not refused because others fill the queue of the peer that
# loaded it: it asks that peer again after a moment (`target.BUSY_SECONDS`), so often.
MAX_OVERLOADED = 60
FOR_A_SLOT = "waiting for a free slot"
# Error code: the model does not accept this kind of input.
UNSUPPORTED_INPUT = "unsupported_input"
_LOCAL, _COUNTING = CallerRank.LOCAL, (Api.COUNT_TOKENS, Api.INPUT_TOKENS)  # see `routes.ENGINE`


@dataclass(slots=True)
class Waits:
    """No target can take the request now: it has joined `queue`, or waits for a change. `message` says for what."""

    message: str
    queue: TargetQueue | None = None


class TargetSelection:
    """The target selection of one request."""

    # What has been found out; a request that is answered at once sets none of them.
    _avoid: Mapping[Target, float] = MappingProxyType({})
    _errors: Mapping[Target, UpstreamError] = MappingProxyType({})
    _not_here = _overloaded = 0
    _failure = ""
    _context_needed = 0
    _tokens: int | None = None
    _has_images_cached: bool | None = None
    _key: bytes | None = None
    _keyed = False
    _prefix: bytes | None = None
    _prefixed = False
    _several = False
    _waited = False  # whether the model was not loaded when the request came, or its host was lost
    _waits_for = ""
    _waits_since = 0.0
    _silent_since = float("inf")  # when the host of the last attempt was heard last

    def __init__(
        self, request: ApiRequest, affinity: SessionAffinity[Place], prefixes: PrefixHosts, *, from_peer: bool = False
    ) -> None:
        """`from_peer`: the request is a peer's, and only targets of this node may answer it."""
        self._request = request
        self._affinity = affinity
        self._prefixes = prefixes
        self._from_peer = from_peer
        self.rank = CallerRank.GUEST if request.salt else CallerRank.PEER if from_peer else _LOCAL
        # Counting tokens takes no slot.
        self.needs_slot = request.api not in _COUNTING

    # -- what comes next

    def decide(
        self,
        route: ModelRoute,
        queues: list[TargetQueue],
        waiter: SlotWaiter,
        queued: TargetQueue | None,
        now: float,
    ) -> TargetQueue | Waits:
        """The target of the next attempt, of which a slot has been taken if one is needed; or what to wait for.

        `queued`: the queue that `waiter` is in, if any. Raises RequestFailed if no target can ever take the request.
        """
        purpose = self._request.api.purpose
        if route.purpose is not None and purpose is not None and purpose is not route.purpose:
            raise RequestFailed(400, "wrong_purpose", route_texts.purpose_message(self._request.model, route.purpose))
        if len(queues) == 1:  # the usual case, without a generator
            no_vision = queues[0].offer.vision is False
        else:
            no_vision = all(queue.offer.vision is False for queue in queues) if queues else route.vision is False
        if no_vision and self._has_images():
            raise RequestFailed(400, UNSUPPORTED_INPUT, route_texts.no_vision_message(self._request.model))
        usable = self._usable(queues, now)
        if usable:
            return self._pick(usable, waiter, queued, now)
        if self._from_peer and not queues and not self._errors:
            if route.availability is Availability.COMING:
                return self._coming(route, now)
            if route.availability is Availability.FAILED:
                raise RequestFailed(503, "model_unavailable", route.message, "retry-after: 30\r\n")
        if self._from_peer and not self._errors:
            cause = f": {self._failure}" if self._failure else ""
            raise RequestFailed(503, NOT_HERE, f"This node does not serve {self._request.model} at the moment{cause}.")
        if queues or self._from_peer:
            return self._no_target(queues)
        if route.availability is Availability.COMING:
            return self._coming(route, now)
        if route.availability is Availability.FAILED:
            raise RequestFailed(503, "model_unavailable", route.message, "retry-after: 30\r\n")
        raise RequestFailed(404, "model_not_found", route.message)

    def _usable(self, queues: list[TargetQueue], now: float) -> list[TargetQueue]:
        """The targets that may be used now: they have not refused or failed this request, and accept its input.

        Resting targets are left out unless all of them rest.
        """
        if len(queues) > 1 and any(queue.offer.vision is False for queue in queues) and self._has_images():
            queues = [queue for queue in queues if queue.offer.vision is not False]
        if self._avoid or self._errors:
            queues = [
                queue
                for queue in queues
                if self._avoid.get(queue.target, 0.0) <= now
                and queue.target not in self._errors
                and not 0 < queue.offer.context_length < self._context_needed
            ]
        if len(queues) == 1 and queues[0].target.kind is not PEER:
            return queues
        purpose = self._request.api.purpose
        fit = [queue for queue in queues if purpose is None or queue.offer.purpose in (None, purpose)]
        model = self._request.model
        found = [queue for queue in fit if not queue.resting(model, now)] or fit
        # All nodes ask the same one to load the model, or a second one would load it, too.
        return found if not found or found[0].offer.loaded else found[:1]

    def _has_images(self) -> bool:
        if self._has_images_cached is None:
            self._has_images_cached = self._request.has_images()
        return self._has_images_cached

    def _pick(
        self, usable: list[TargetQueue], waiter: SlotWaiter, queued: TargetQueue | None, now: float
    ) -> TargetQueue | Waits:
        ordered = usable if len(usable) == 1 else self._ordered(usable, now)
        if not ordered[0].offer.loaded:
            self._waited = True
        if not self.needs_slot:
            return ordered[0]
        cost, rank = self._request.tasks, self.rank
        for queue in ordered:
            if queue.free and queue.take(cost, rank):
                return queue
        if queued is not None and queued in usable:
            return Waits(FOR_A_SLOT, queued)
        if len(usable) == 1 and usable[0].target.kind is ENGINE:
            # Now, because it does not depend on a slot: a busy engine must not delay it, nor a full queue hide it.
            offer = usable[0].offer
            refusal = self._request.refusal(offer.template, offer.vectors)
            if refusal is not None:
                raise RequestFailed.by(refusal)
        for queue in ordered:
            # A peer may be busy with requests of other nodes: then our request waits in its queue, not in ours.
            if queue.take(cost, rank):
                return queue
            # What has been let wait for its model is not refused because others have waited for it, too.
            if queue.join(waiter, cost, rank, bounded=self._from_peer or not self._waited):
                return Waits(FOR_A_SLOT, queue)
        if (error := self._best_error()) is not None:
            raise RequestFailed.with_error(error)
        queue = ordered[0]
        load = f"{queue.active} requests active, {queue.waiting} waiting"
        message = f"{self._request.model} is overloaded: {load}. Retry later."
        raise RequestFailed(429, OVERLOADED, message, f"retry-after: {queue.retry_after()}\r\n")

    def _ordered(self, usable: list[TargetQueue], now: float) -> list[TargetQueue]:
        self._several = True
        place = self._preferred_place(now)
        prefix = self._prefix_key() if place is None else None
        computed = self._prefixes.find(prefix, now) if prefix is not None else ()
        candidates = [
            RankedHost(
                order,
                queue.target.kind is not PEER,
                queue.free,
                queue.busy,
                queue.offer.rtt,
                queue.offer.context_length,
                place is not None and queue.target.place == place,
                known=queue.has_answered,
                owned=queue.offer.owned,
                prefix=queue.target.place in computed,
            )
            for order, queue in enumerate(usable)
        ]
        return [usable[candidate.order] for candidate in rank(candidates, self._least_tokens(usable))]

    def _least_tokens(self, usable: list[TargetQueue]) -> int:
        """A lower bound of the prompt's tokens; 0 if every context is large enough."""
        known = [queue.offer.context_length for queue in usable if queue.offer.context_length]
        if not known or least_tokens(len(self._request.body)) <= min(known):
            return 0
        if self._tokens is None:
            self._tokens = least_tokens(text_bytes(self._request.request))
        return self._tokens

    def _no_target(self, queues: list[TargetQueue]) -> Waits:
        """There are hosts, but none may be used now."""
        failed = self._avoid.keys() - self._errors.keys()
        waits = not self._from_peer and any(queue.target in failed for queue in queues)
        error = self._best_error()
        if error is not None and not waits:
            raise RequestFailed.with_error(error)
        purpose = next((queue.offer.purpose for queue in queues if queue.offer.purpose is not None), None)
        if not waits and purpose is not None:
            raise RequestFailed(400, "wrong_purpose", route_texts.purpose_message(self._request.model, purpose))
        if self._overloaded:
            return Waits(f"{self._request.model} is overloaded; {FOR_A_SLOT}")
        self._waited = True
        return Waits(f"The server for {self._request.model} stopped; waiting for it to restart.")

    def _best_error(self) -> UpstreamError | None:
        """The error for a caller that no host served: "prompt too long" rather than "overloaded"."""
        errors = list(self._errors.values())
        too_long = [error for error in errors if error.code == CONTEXT]
        if too_long:
            return max(too_long, key=lambda error: error.number("n_ctx"))
        return errors[-1] if errors else None

    def _coming(self, route: ModelRoute, now: float) -> Waits:
        self._waited = True
        waits_for = route.waits_for or route.timeout_message
        if waits_for != self._waits_for:
            self._waits_for, self._waits_since = waits_for, min(now, self._silent_since)
        if route.max_wait is not None and now - self._waits_since >= route.max_wait:
            raise RequestFailed(503, "model_unavailable", route.timeout_message, "retry-after: 5\r\n")
        return Waits(route.message)

    def has_other(self, queues: list[TargetQueue], but: TargetQueue, now: float, *, at_once: bool = True) -> bool:
        """Whether another target could take this request, `at_once` or in its turn."""
        model = self._request.model
        return any(
            queue.target.place != but.target.place and not queue.resting(model, now) and (queue.free or not at_once)
            for queue in self._usable(queues, now)
        )

    # -- results of attempts

    def avoid(self, queue: TargetQueue, until: float, reason: str, *, whole: bool, silent_since: float) -> None:
        """An attempt failed. `whole`: because the peer itself is down, which no conversation prefers any more;
        `silent_since`: when it was heard last, from which on the caller waits."""
        self._silent_since = silent_since
        self._waited = True
        self._failure = f"{queue.name}: {reason}"
        self._avoid = {**self._avoid, queue.target: until}
        if whole:
            self._affinity.forget_place(queue.target.place)
            self._prefixes.forget_place(queue.target.place)
        else:
            self._forget(queue.target.place)

    def refused(self, queue: TargetQueue, error: UpstreamError, now: float) -> bool:
        """A host refused the request, and another may not. False if there have been too many such refusals."""
        if error.code == NOT_HERE:
            self._forget(queue.target.place)
            self._avoid = {**self._avoid, queue.target: now + NOT_HERE_SECONDS}
            self._not_here += 1
            return self._not_here < MAX_NOT_HERE
        if self._asks_again(queue, error):
            queue.overloaded(now)
            self._avoid = {**self._avoid, queue.target: now + BUSY_SECONDS}
            return True
        self._errors = {**self._errors, queue.target: error}
        if error.code == CONTEXT:
            limit = error.number("n_ctx") or queue.offer.context_length
            self._context_needed = max(self._context_needed, limit + 1, error.number("n_prompt_tokens"))
        else:
            queue.overloaded(now)
            self._forget(queue.target.place, cached=True)
        return True

    def _asks_again(self, queue: TargetQueue, error: UpstreamError) -> bool:
        """Whether a peer that is overloaded is asked again."""
        full = error.code == OVERLOADED and queue.target.kind is PEER
        if not full or not self._waited or self._from_peer or self._overloaded >= MAX_OVERLOADED:
            return False
        self._overloaded += 1
        return True

    def answered(self, queue: TargetQueue, now: float) -> None:
        """A response has begun: the next turn of this conversation prefers this host."""
        queue.answered(self._request.model)
        if self._several or queue.target.kind is PEER:
            if (key := self._conversation_key()) is not None:
                self._affinity.remember(key, queue.target.place, now, firm=bool(self._request.request.get("tools")))
            if self.needs_slot and (key := self._prefix_key()) is not None:
                self._prefixes.remember(key, queue.target.place, now)

    def _preferred_place(self, now: float) -> Place | None:
        key = self._conversation_key()
        return self._affinity.find(key, now) if key is not None else None

    def _forget(self, place: Place, *, cached: bool = False) -> None:
        """Prefer `place` no more for this conversation; nor for its prefix, unless that is still `cached` there."""
        key = self._conversation_key()
        if key is not None and self._affinity.find(key, 0.0) == place:
            self._affinity.forget(key)
        if not cached and (prefix := self._prefix_key()) is not None:
            self._prefixes.forget(prefix, place)

    def _conversation_key(self) -> bytes | None:
        if not self._keyed:
            self._keyed = True
            self._key = conversation_key(self._request.api, self._request.request, self._request.headers)
        return self._key

    def _prefix_key(self) -> bytes | None:
        if not self._prefixed:
            self._prefixed = True
            self._prefix = prefix_key(self._request.api, self._request.request, self._request.salt)
        return self._prefix
