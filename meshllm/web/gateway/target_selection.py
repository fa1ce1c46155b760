"""Which host a request is asked of next, and what it has learned from those that it was asked of before.

Law: every host is tried once for what it refuses (no room, not here, too long a prompt); a failure is tried again, but
elsewhere first. What a host refused is passed on only when there is nobody left. Nothing here waits or sends: the
exchange asks for one `Decision` at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.routing import routes
from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.ranking import RankedHost, least_tokens, rank
from meshllm.core.routing.routes import Availability, ModelRoute, Place, Target, TargetKind
from meshllm.web.gateway.api_request import ApiRequest
from meshllm.web.gateway.session import conversation, text_bytes
from meshllm.web.gateway.target import SlotWaiter, TargetQueue
from meshllm.web.gateway.upstream_errors import CONTEXT, NOT_HERE, UpstreamError
from meshllm.wire.api.routes import Api

# A peer that does not have what this node believes it has: its next record will say so, within about as long.
NOT_HERE_SECONDS = 2.0
# So many such answers, and the caller hears an error: half a minute, in which a small engine has been started anew.
MAX_NOT_HERE = 15
# The code of a refusal: the model does not take what it was given.
UNSUPPORTED_INPUT = "unsupported_input"


class SelectionAction(Enum):
    """What is to be done next."""

    ASK = "ask"  # `desk`, of which a slot has been taken where one is needed
    QUEUED = "queued"  # the place in the queue has been taken, or is kept
    WAIT = "wait"  # for something to change
    FAIL = "fail"
    TELL = "tell"  # pass `refusal` on


@dataclass(slots=True)  # not frozen: that costs every request more than a microsecond
class SelectionStep:
    """One next step, with what it needs; `words` are for people. Not changed once made."""

    step: SelectionAction
    desk: TargetQueue | None = None
    words: str = ""
    status: int = 0
    code: str = ""
    headers: str = ""
    refusal: UpstreamError | None = None


class TargetSelection:
    """The search of one request for a host."""

    def __init__(self, inquiry: ApiRequest, stickiness: SessionAffinity, *, guest: bool = False) -> None:
        """`guest`: the request is a peer's, and is only for what is served here."""
        self._inquiry = inquiry
        self._stickiness = stickiness
        self._guest = guest
        # Counting tokens is no work to wait for.
        self.needs_slot = inquiry.api not in (Api.COUNT_TOKENS, Api.INPUT_TOKENS)
        self._avoid: dict[Target, float] = {}
        self._refusals: dict[Target, UpstreamError] = {}
        self._not_here = 0
        self._context_needed = 0
        self._tokens: int | None = None
        self._pictures: bool | None = None
        self._key: bytes | None = None
        self._keyed = False
        self._several = False
        self._verdict = ""
        self._since = 0.0

    # -- what comes next

    def decide(self, route: ModelRoute, desks: list[TargetQueue], waiter: SlotWaiter, queued: TargetQueue | None,
               now: float) -> SelectionStep:  # fmt: skip
        """The next step. `queued` is whose queue `waiter` stands in."""
        api, model = self._inquiry.api, self._inquiry.model
        if route.purpose is not None and api.purpose not in (None, route.purpose):
            return SelectionStep(SelectionAction.FAIL, words=routes.purpose_message(model, route.purpose), status=400,
                            code="wrong_purpose")  # fmt: skip
        blind = all(desk.offer.vision is False for desk in desks) if desks else route.vision is False
        if blind and self._shows_pictures():
            return SelectionStep(
                SelectionAction.FAIL, words=routes.no_vision_message(model), status=400, code=UNSUPPORTED_INPUT
            )
        usable = self._usable(desks, now)
        if usable:
            return self._pick(usable, waiter, queued, now)
        if self._guest and not self._refusals:
            words = f"{model} is not served by this node at the moment."
            return SelectionStep(SelectionAction.FAIL, words=words, status=503, code=NOT_HERE)
        if desks or self._guest:
            return self._nobody(desks)
        if route.availability is Availability.COMING:
            return self._coming(route, now)
        if route.availability is Availability.FAILED:
            return SelectionStep(SelectionAction.FAIL, words=route.message, status=503, code="model_unavailable",
                            headers="retry-after: 30\r\n")  # fmt: skip
        return SelectionStep(SelectionAction.FAIL, words=route.message, status=404, code="model_not_found")

    def _usable(self, desks: list[TargetQueue], now: float) -> list[TargetQueue]:
        """Who may be asked now: whoever has not refused or failed this request and can see what it shows, and among
        them those not at rest."""
        if any(desk.offer.vision is False for desk in desks) and self._shows_pictures():
            desks = [desk for desk in desks if desk.offer.vision is not False]
        if self._avoid or self._refusals:
            desks = [
                desk
                for desk in desks
                if self._avoid.get(desk.target, 0.0) <= now
                and desk.target not in self._refusals
                and not 0 < desk.offer.context_length < self._context_needed
            ]
        if len(desks) == 1 and desks[0].target.kind is not TargetKind.PEER:
            return desks
        purpose = self._inquiry.api.purpose
        fit = [desk for desk in desks if purpose is None or desk.offer.purpose in (None, purpose)]
        return [desk for desk in fit if desk.resting_until <= now] or fit

    def _shows_pictures(self) -> bool:
        if self._pictures is None:
            self._pictures = self._inquiry.shows_pictures()
        return self._pictures

    def _pick(
        self, usable: list[TargetQueue], waiter: SlotWaiter, queued: TargetQueue | None, now: float
    ) -> SelectionStep:
        ordered = usable if len(usable) == 1 else self._ordered(usable, now)
        if not self.needs_slot:
            return SelectionStep(SelectionAction.ASK, ordered[0])
        for desk in ordered:
            if desk.free and desk.take():
                return SelectionStep(SelectionAction.ASK, desk)
        if queued is not None and queued in usable:
            return SelectionStep(SelectionAction.QUEUED, queued)
        for desk in ordered:
            # A peer may be busy with what others sent: then our request stands in its queue, not in ours.
            if desk.take():
                return SelectionStep(SelectionAction.ASK, desk)
            if desk.join(waiter, guest=self._guest):
                return SelectionStep(SelectionAction.QUEUED, desk, words="waiting for a free slot")
        if (told := self._best_refusal()) is not None:
            return SelectionStep(SelectionAction.TELL, refusal=told)
        desk = ordered[0]
        words = (
            f"{self._inquiry.model} is busy: {desk.active} requests at work and {desk.waiting} waiting. Try again soon."
        )
        return SelectionStep(SelectionAction.FAIL, words=words, status=429, code="overloaded",
                        headers=f"retry-after: {desk.retry_after()}\r\n")  # fmt: skip

    def _ordered(self, usable: list[TargetQueue], now: float) -> list[TargetQueue]:
        self._several = True
        place = self._sticky_place(now)
        candidates = [
            RankedHost(
                order,
                desk.target.kind is not TargetKind.PEER,
                desk.free,
                desk.busy,
                desk.offer.rtt,
                desk.offer.context_length,
                place is not None and desk.target.place == place,
            )
            for order, desk in enumerate(usable)
        ]
        return [usable[candidate.order] for candidate in rank(candidates, self._least_tokens(usable))]

    def _least_tokens(self, usable: list[TargetQueue]) -> int:
        """How many tokens the prompt has at least; 0 where it cannot matter."""
        known = [desk.offer.context_length for desk in usable if desk.offer.context_length]
        if not known or least_tokens(len(self._inquiry.body)) <= min(known):
            return 0
        if self._tokens is None:
            self._tokens = least_tokens(text_bytes(self._inquiry.request))
        return self._tokens

    def _nobody(self, desks: list[TargetQueue]) -> SelectionStep:
        """There are hosts, and none that may be asked now."""
        failed = self._avoid.keys() - self._refusals.keys()
        waits = not self._guest and any(desk.target in failed for desk in desks)
        told = self._best_refusal()
        if told is not None and not waits:
            return SelectionStep(SelectionAction.TELL, refusal=told)
        purpose = next((desk.offer.purpose for desk in desks if desk.offer.purpose is not None), None)
        if not waits and purpose is not None:
            words = routes.purpose_message(self._inquiry.model, purpose)
            return SelectionStep(SelectionAction.FAIL, words=words, status=400, code="wrong_purpose")
        return SelectionStep(
            SelectionAction.WAIT, words=f"{self._inquiry.model} lost its server; waiting for it to come back"
        )

    def _best_refusal(self) -> UpstreamError | None:
        """What to tell a caller whom nobody served: that its prompt is too long, rather than that somebody was busy."""
        refusals = list(self._refusals.values())
        too_long = [refusal for refusal in refusals if refusal.code == CONTEXT]
        if too_long:
            return max(too_long, key=lambda refusal: refusal.number("n_ctx"))
        return refusals[-1] if refusals else None

    def _coming(self, route: ModelRoute, now: float) -> SelectionStep:
        if route.timeout_message != self._verdict:
            self._verdict, self._since = route.timeout_message, now
        if route.max_wait is not None and now - self._since >= route.max_wait:
            return SelectionStep(
                SelectionAction.FAIL,
                words=route.timeout_message,
                status=503,
                code="model_unavailable",
                headers="retry-after: 5\r\n",
            )
        return SelectionStep(SelectionAction.WAIT, words=route.message)

    def another(self, desks: list[TargetQueue], but: TargetQueue, now: float, *, at_once: bool = True) -> bool:
        """Whether somebody else could work on this, `at_once` or in its turn."""
        return any(
            desk.target.place != but.target.place and desk.resting_until <= now and (desk.free or not at_once)
            for desk in self._usable(desks, now)
        )

    # -- what has been learned

    def avoid(self, desk: TargetQueue, until: float) -> None:
        """Asking there has failed."""
        self._avoid[desk.target] = until
        self._stickiness.forget_place(desk.target.place)

    def refused(self, desk: TargetQueue, refusal: UpstreamError, now: float) -> bool:
        """A host gave an answer that another may do better. False if there have been too many."""
        if refusal.code == NOT_HERE:
            self._forget(desk.target.place)
            self._avoid[desk.target] = now + NOT_HERE_SECONDS
            self._not_here += 1
            return self._not_here < MAX_NOT_HERE
        self._refusals[desk.target] = refusal
        if refusal.code == CONTEXT:
            had = refusal.number("n_ctx") or desk.offer.context_length
            self._context_needed = max(self._context_needed, had + 1, refusal.number("n_prompt_tokens"))
        else:
            desk.overloaded(now)
            self._forget(desk.target.place)
        return True

    def begun(self, desk: TargetQueue, now: float) -> None:
        """The answer has begun: the next turn of this conversation is best asked there."""
        desk.answered()
        if (self._several or desk.target.kind is TargetKind.PEER) and (key := self._conversation()) is not None:
            self._stickiness.remember(key, desk.target.place, now)

    def _sticky_place(self, now: float) -> Place | None:
        key = self._conversation()
        return self._stickiness.find(key, now) if key is not None else None

    def _forget(self, place: Place) -> None:
        key = self._conversation()
        if key is not None and self._stickiness.find(key, 0.0) == place:
            self._stickiness.forget(key)

    def _conversation(self) -> bytes | None:
        if not self._keyed:
            self._keyed = True
            self._key = conversation(self._inquiry.api, self._inquiry.request, self._inquiry.headers)
        return self._key
