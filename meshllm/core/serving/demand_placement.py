"""What this node serves for the mesh's demand: takes a model, steps back from it, moves to another, gives up on one.

Invariants: without a request a node takes one such model at most; requests make it take others, which it unloads again
(`unloading.py`). A node with one such model may move to another. It says so first (`reserved`), and looks again before
it leaves, so that two hosts of one model do not leave it at once. A model that this node could not serve is left to
others for `AVOID_SECONDS`. The claim of another node that it loads a model counts for `CLAIM_SECONDS` only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from meshllm.core.records import NodeId, NodeRecord
from meshllm.core.serving import fetching, placement
from meshllm.core.serving.fetching import FetchFacts
from meshllm.core.serving.placement import Need, PlacementView

# How often a node decides. First once the table has come and most nodes in it are verified.
PLACEMENT_SECONDS = 3.0
# After a longer pause between two decisions, how long a need has been known is counted from the start.
PAUSE_SECONDS = 4 * PLACEMENT_SECONDS
AVOID_SECONDS = 600.0
# A node that took a model stays with it for so long before it may move to another one.
RESIDENCE_SECONDS = 600.0
# How long a node says that it will move before it leaves its model: the mesh knows by then.
NOTICE_SECONDS = 5.0
# A move that has not come about after this time is given up: the answers of the old model take too long.
MOVE_SECONDS = 300.0
# How long the claim of a node that it loads a model keeps others from it, and how many claims are remembered.
CLAIM_SECONDS = 300.0
MAX_CLAIMS = 4096


@dataclass(frozen=True, slots=True)
class TakenModel:
    """A model that this node took. `since`: when; `download`: it was not on the disk."""

    need: Need
    since: float
    download: bool = False


@dataclass(frozen=True, slots=True)
class PlacementStep:
    """What to do: `take` a model (`download`: which is not on the disk), `release` the one that was taken, or publish a
    `changed` plan."""

    take: str = ""
    download: bool = False
    release: str = ""
    changed: bool = False


@dataclass(frozen=True, slots=True)
class PlacementFacts:
    """What one node knows beside the records. `waited`: for how many seconds each need has been known to it; `avoided`:
    the models that it could not serve lately, why, and for how many seconds it leaves them to others; `moves_to`: the
    model that it moves to, `moves_in` so many seconds at least."""

    waited: Mapping[str, float] = field(default_factory=dict)
    avoided: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    moves_to: str = ""
    moves_in: float = 0.0


class DemandPlacement:
    """The decisions of one node."""

    def __init__(self) -> None:
        self.taken: dict[str, TakenModel] = {}
        # The model that this node moves to, and since when.
        self._reserved: TakenModel | None = None
        self.movable = ""  # the model that this node may leave for another
        self._needed: dict[str, float] = {}  # since when each need is known
        self._decided_at = 0.0
        self._avoided: dict[str, tuple[float, str]] = {}  # until when, and why the model could not be served

    @property
    def reserved(self) -> str:
        """The model that this node moves to; "" if it does not."""
        return "" if self._reserved is None else self._reserved.need.model

    @property
    def busy(self) -> bool:
        """Whether there is something to decide on even if this node could not take a model."""
        return bool(self.taken) or self._reserved is not None

    def keep(self, models: Collection[str]) -> None:
        """Of the models that were taken, only these are still served here on the mesh's word."""
        if len(models) < len(self.taken):
            self.taken = {model: taken for model, taken in self.taken.items() if model in models}

    def take(self, model: str, now: float) -> None:
        """A request made this node take `model`."""
        self.taken.setdefault(model, TakenModel(Need(model), now))

    def avoid(self, model: str, now: float, cause: str) -> None:
        """This node could not serve `model`, for this `cause`."""
        self._avoided[model] = now + AVOID_SECONDS, cause

    @property
    def avoided(self) -> Mapping[str, str]:
        """The models that this node could not serve lately, with the causes."""
        return {model: cause for model, (_, cause) in self._avoided.items()}

    def expire(self, now: float) -> None:
        """Forget failures of long ago."""
        if self._avoided and min(until for until, _ in self._avoided.values()) <= now:
            self._avoided = {model: (until, cause) for model, (until, cause) in self._avoided.items() if until > now}

    def next_expiry(self) -> float | None:
        """When the next failure is forgotten."""
        return min([until for until, _ in self._avoided.values()], default=None)

    def facts(self, now: float) -> PlacementFacts:
        """What this node knows beside the records, for those who ask what it will do."""
        known = self._needed if now - self._decided_at <= PAUSE_SECONDS else {}
        reserved = self._reserved
        return PlacementFacts(
            {model: now - since for model, since in known.items()},
            {model: (cause, until - now) for model, (until, cause) in self._avoided.items() if until > now},
            "" if reserved is None else reserved.need.model,
            0.0 if reserved is None else max(0.0, reserved.since + NOTICE_SECONDS - now),
        )

    def decide(
        self,
        view: PlacementView,
        own: NodeRecord,
        now: float,
        *,
        free: bool,
        serving: Collection[str],
        failed: Mapping[str, str],
        fetch: FetchFacts | None = None,
    ) -> PlacementStep:
        """The next step of the node with the record `own`. `free`: it could take a model; of those that it took:
        `serving`, and `failed` to load, with the causes. `fetch`: what it could download (None: it may not)."""
        # What was needed before a long pause may have been served meanwhile.
        known = self._needed if now - self._decided_at <= PAUSE_SECONDS else {}
        self._needed, self._decided_at = {need.model: known.get(need.model, now) for need in view.needs}, now
        self.expire(now)
        before = self.movable, self.reserved
        if self._reserved is not None and now - self._reserved.since >= MOVE_SECONDS:
            self._reserved = None
        step = self._take(view, own, now, fetch) if free and not self.taken else PlacementStep()
        if self.taken and not step.take:
            step = self._next(view, own, now, serving=serving, failed=failed)
        settled = [taken for taken in self.taken.values() if now - taken.since >= RESIDENCE_SECONDS]
        only = settled[0].need.model if len(self.taken) == len(settled) == 1 else ""
        self.movable = only if only in serving else ""
        return replace(step, changed=bool(step.take or step.release) or before != (self.movable, self.reserved))

    def _next(
        self,
        view: PlacementView,
        own: NodeRecord,
        now: float,
        *,
        serving: Collection[str],
        failed: Mapping[str, str],
    ) -> PlacementStep:
        for model, taken in self.taken.items():
            if model in failed:
                self.avoid(model, now, failed[model])
                return self._release(taken)
            young = now - taken.since < RESIDENCE_SECONDS
            if young and placement.is_surplus(view, own, taken.need, serving=model in serving):
                return self._release(taken)
        if self._reserved is None:
            need = placement.move(view, own) if self.movable in serving else None
            if need is not None and need.model not in self._avoided:
                self._reserved = TakenModel(need, now)
        elif len(self.taken) > 1 or (view.hosts.get(self.reserved) and not self._reserved.need.extra):
            self._reserved = None  # another node serves it meanwhile, or this one took a second model
        elif now - self._reserved.since >= NOTICE_SECONDS:
            (taken,) = self.taken.values()
            if placement.may_leave(view, own, taken.need.model):
                return self._release(taken)
            self._reserved = None
        return PlacementStep()

    def _take(self, view: PlacementView, own: NodeRecord, now: float, fetch: FetchFacts | None) -> PlacementStep:
        download = False
        if self._reserved is not None:
            need: Need | None = self._reserved.need
            if view.hosts.get(self.reserved) and not self._reserved.need.extra:
                need = None
            self._reserved = None
        else:
            waited = {model: now - since for model, since in self._needed.items()}
            need = placement.choose(view, own, waited, self._avoided.keys())
            if need is None and fetch is not None:
                need = fetching.choose(view, own, fetch, waited, self._avoided.keys())
                download = need is not None
        if need is None:
            return PlacementStep()
        self.taken[need.model] = TakenModel(need, now, download)
        return PlacementStep(take=need.model, download=download)

    def _release(self, taken: TakenModel) -> PlacementStep:
        del self.taken[taken.need.model]
        return PlacementStep(release=taken.need.model)


class LoadingClaims:
    """Since when other nodes say that they load their models: a node that never serves one must not keep others from
    it."""

    def __init__(self) -> None:
        self._since: dict[tuple[NodeId, str], float] = {}

    def believed(self, records: Iterable[NodeRecord], now: float) -> list[NodeRecord]:
        """The records without the claims that are too old."""
        records = list(records)
        since: dict[tuple[NodeId, str], float] = {}
        for record in records:
            for model in record.loading:
                if len(since) < MAX_CLAIMS:
                    since[record.node, model] = self._since.get((record.node, model), now)
        self._since = since
        return self.without_old(records, now)

    def without_old(
        self, records: Iterable[NodeRecord], now: float, seconds: float = CLAIM_SECONDS
    ) -> list[NodeRecord]:
        """The same, but nothing is learned from the records; a claim counts for `seconds`."""
        found = []
        for record in records:
            good = [m for m in record.loading if now - self._since.get((record.node, m), now) < seconds]
            found.append(record if len(good) == len(record.loading) else replace(record, loading=tuple(good)))
        return found
