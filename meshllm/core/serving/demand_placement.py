"""What this node serves for the mesh's demand: takes a model, steps back from it, moves to another, gives up on one.

Invariants: a node has at most one such model. A node that moves says so first (`reserved`), and looks again before it
leaves, so that two hosts of one model do not leave it at once. A model that this node could not serve is left to others
for `AVOID_SECONDS`. The claim of another node that it loads a model counts for `CLAIM_SECONDS` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from meshllm.core.records import NodeId, NodeRecord
from meshllm.core.serving import placement
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
    """A model that this node took. `since`: when."""

    need: Need
    since: float


@dataclass(frozen=True, slots=True)
class PlacementStep:
    """What to do: `take` a model, `release` the one that was taken, or publish a `changed` plan."""

    take: str = ""
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
        self.taken: TakenModel | None = None
        # The model that this node moves to, and since when.
        self._reserved: TakenModel | None = None
        self.movable = False
        self._needed: dict[str, float] = {}  # since when each need is known
        self._decided_at = 0.0
        self._avoided: dict[str, float] = {}
        self._causes: dict[str, str] = {}  # why the avoided models could not be served

    @property
    def model(self) -> str:
        """The model that this node took; "" if there is none."""
        return "" if self.taken is None else self.taken.need.model

    @property
    def reserved(self) -> str:
        """The model that this node moves to; "" if it does not."""
        return "" if self._reserved is None else self._reserved.need.model

    @property
    def busy(self) -> bool:
        """Whether there is something to decide on even if this node could not take a model."""
        return self.taken is not None or self._reserved is not None

    def facts(self, now: float) -> PlacementFacts:
        """What this node knows beside the records, for those who ask what it will do."""
        known = self._needed if now - self._decided_at <= PAUSE_SECONDS else {}
        reserved = self._reserved
        return PlacementFacts(
            {model: now - since for model, since in known.items()},
            {
                model: (self._causes.get(model, ""), until - now)
                for model, until in self._avoided.items()
                if until > now
            },
            "" if reserved is None else reserved.need.model,
            0.0 if reserved is None else max(0.0, reserved.since + NOTICE_SECONDS - now),
        )

    def failed(self, model: str, cause: str) -> None:
        """Remember why `model`, which was released, could not be served."""
        self._causes = {name: text for name, text in self._causes.items() if name in self._avoided} | {model: cause}

    def forget(self) -> None:
        """The model that was taken is not served here any more."""
        self.taken = None

    def decide(
        self, view: PlacementView, own: NodeRecord, now: float, *, free: bool, serving: bool, failed: bool
    ) -> PlacementStep:
        """The next step of the node with the record `own`. `free`: it could take a model; of the one that it took:
        `serving`, or `failed` to load."""
        # What was needed before a long pause may have been served meanwhile.
        known = self._needed if now - self._decided_at <= PAUSE_SECONDS else {}
        self._needed, self._decided_at = {need.model: known.get(need.model, now) for need in view.needs}, now
        self._avoided = {model: until for model, until in self._avoided.items() if until > now}
        before = self.movable, self.reserved
        if self._reserved is not None and now - self._reserved.since >= MOVE_SECONDS:
            self._reserved = None
        step = self._next(view, own, now, free=free, serving=serving, failed=failed)
        self.movable = self.taken is not None and serving and now - self.taken.since >= RESIDENCE_SECONDS
        return replace(step, changed=bool(step.take or step.release) or before != (self.movable, self.reserved))

    def _next(
        self, view: PlacementView, own: NodeRecord, now: float, *, free: bool, serving: bool, failed: bool
    ) -> PlacementStep:
        taken = self.taken
        if taken is None:
            return self._take(view, own, now) if free else PlacementStep()
        if failed:
            self._avoided[taken.need.model] = now + AVOID_SECONDS
            return self._release(taken)
        young = now - taken.since < RESIDENCE_SECONDS
        if young and placement.is_surplus(view, own, taken.need, serving=serving):
            return self._release(taken)
        if self._reserved is None:
            need = placement.move(view, own) if self.movable and serving else None
            if need is not None and need.model not in self._avoided:
                self._reserved = TakenModel(need, now)
        elif view.hosts.get(self.reserved) and not self._reserved.need.extra:
            self._reserved = None  # another node serves it meanwhile
        elif now - self._reserved.since >= NOTICE_SECONDS:
            if placement.may_leave(view, own, taken.need.model):
                return self._release(taken)
            self._reserved = None
        return PlacementStep()

    def _take(self, view: PlacementView, own: NodeRecord, now: float) -> PlacementStep:
        if self._reserved is not None:
            need: Need | None = self._reserved.need
            if view.hosts.get(self.reserved) and not self._reserved.need.extra:
                need = None
            self._reserved = None
        else:
            waited = {model: now - since for model, since in self._needed.items()}
            need = placement.choose(view, own, waited, self._avoided.keys())
        if need is None:
            return PlacementStep()
        self.taken = TakenModel(need, now)
        return PlacementStep(take=need.model)

    def _release(self, taken: TakenModel) -> PlacementStep:
        self.taken = None
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

    def without_old(self, records: Iterable[NodeRecord], now: float) -> list[NodeRecord]:
        """The same, but nothing is learned from the records."""
        found = []
        for record in records:
            good = [m for m in record.loading if now - self._since.get((record.node, m), now) < CLAIM_SECONDS]
            found.append(record if len(good) == len(record.loading) else replace(record, loading=tuple(good)))
        return found
