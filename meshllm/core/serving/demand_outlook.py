"""What each node will do next for the mesh's demand, and why a demanded model is not served: facts for users. Pure.

The rules are those of `placement`, on its view: nothing is decided here, and what is said is what the nodes do as far
as their records tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from meshllm.core.demand.mesh_demand import DemandClaim, scores
from meshllm.core.records import NodeId, NodeRecord, UnservedCause, short
from meshllm.core.serving import fetching, placement
from meshllm.core.serving.demand_placement import LoadingClaims, PlacementFacts
from meshllm.core.serving.fetching import DOWNLOAD_CLAIM_SECONDS, FetchFacts
from meshllm.core.serving.placement import PlacementView

# Standbys behind the first one for which is said when they take its model.
FOLLOWERS = 2
# Nodes that one obstacle names.
MAX_NODES = 3
NO_FACTS = PlacementFacts()
NOTHING_TO_FETCH = FetchFacts()


class NextAct(Enum):
    """What a node will do next. FOLLOWS: it takes the model if the first candidate does not."""

    TAKES = "takes"
    FOLLOWS = "follows"
    LOADS = "loads"
    MOVES = "moves"
    LAST_HOST = "last host"
    STAYS = "stays"
    SERVES = "serves"
    ASKS = "asks"
    WORKS = "works"
    FREE = "free"
    IDLE = "idle"
    LEAVES = "leaves"


class Obstacle(Enum):
    """Why no node serves a demanded model, and none is about to."""

    SPLIT = "split"
    DROPPED = "dropped"
    FAILED = "failed"
    NO_FILE = "no file"
    NO_MEMORY = "no memory"
    BUSY = "busy"
    NOT_ALLOWED = "not allowed"
    MORE_URGENT = "more urgent"


@dataclass(frozen=True, slots=True)
class NodeOutlook:
    """What `node` will do next, with `model`, in so many `seconds` (None: not known, or at any time). `other`: the node
    that comes first (FOLLOWS); `download`: it downloads the model (TAKES)."""

    node: NodeId
    act: NextAct
    model: str = ""
    seconds: float | None = None
    other: NodeId | None = None
    download: bool = False


@dataclass(frozen=True, slots=True)
class ObstacleFacts:
    """One obstacle. `nodes`: those that have the file and are kept from serving it; `needed` bytes at least, of which
    the first node has `free`, and `room` with what it would unload for a request; `seconds`: how long it lasts;
    `cause`: of a failure; `model`: the more urgent one."""

    kind: Obstacle
    nodes: tuple[NodeId, ...] = ()
    needed: int = 0
    free: int = 0
    room: int = 0
    seconds: float = 0.0
    cause: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class ModelOutlook:
    """Who loads a demanded model, who takes it next (None: no node), and the obstacles, if no node serves it."""

    model: str
    loading: tuple[NodeId, ...] = ()
    taker: NodeOutlook | None = None
    obstacles: tuple[ObstacleFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class DemandOutlook:
    """What is to come. `own`: this node; `labels`: names of nodes, with the beginning of the id where two are equal."""

    own: NodeId
    models: Mapping[str, ModelOutlook] = field(default_factory=dict)
    nodes: tuple[NodeOutlook, ...] = ()
    labels: Mapping[NodeId, str] = field(default_factory=dict)

    def label(self, node: NodeId) -> str:
        """How users know `node`."""
        return "this node" if node == self.own else self.labels.get(node) or short(node)


@dataclass(frozen=True, slots=True)
class OwnSituation:
    """What only this node knows. `free`: it could take a model; `works_on`: the model whose layers it computes for a
    host; `dropped`: models that its owner dropped, and for how many seconds that counts; `asked`: models that its
    callers ask for; `catalog`: bytes of the catalogue's models."""

    free: bool = True
    works_on: str = ""
    dropped: Mapping[str, float] = field(default_factory=dict)
    facts: PlacementFacts = NO_FACTS
    asked: Collection[str] = ()
    catalog: Mapping[str, int] = field(default_factory=dict)


def outlook_of(
    claims: Sequence[DemandClaim], loading: LoadingClaims, situation: OwnSituation, now: float
) -> DemandOutlook:
    """What is to come, by the `claims` of the living nodes, this one first."""
    published = [claim.record for claim in claims]
    records = [published[0], *loading.without_old(published[1:], now)]
    named = situation.asked
    fetch = FetchFacts()
    if any(record.download_room for record in records):
        named = {*situation.asked, *situation.catalog}
        known = loading.without_old(published, now, DOWNLOAD_CLAIM_SECONDS)
        fetch = FetchFacts(known, situation.catalog, situation.dropped.keys())
    view = PlacementView(records, scores(claims, named), {claim.record.node for claim in claims if claim.owned})
    return outlook(view, records, records[0].node, situation, fetch)


def outlook(
    view: PlacementView,
    records: Iterable[NodeRecord],
    own: NodeId,
    situation: OwnSituation,
    fetch: FetchFacts = NOTHING_TO_FETCH,
) -> DemandOutlook:
    """What is to come, by the `records` of which `view` is made, for the node `own`. `fetch`: what decides on
    downloads."""
    records = list(records)
    coming = _downloads(view, own, situation, fetch) | _coming(view, own, situation)
    nodes = tuple([coming.get(record.node) or _next_act(view, record, own, situation) for record in records])
    takers = {step.model: step for step in coming.values() if step.act in (NextAct.TAKES, NextAct.MOVES)}
    models = {model: _model(view, model, records, own, situation, takers) for model in view.scores}
    return DemandOutlook(own, models, nodes, labels(records))


def labels(records: Iterable[NodeRecord]) -> dict[NodeId, str]:
    """The names of nodes, with the beginning of the id where two are equal."""
    records = list(records)
    count: dict[str, int] = {}
    for record in records:
        count[record.name] = count.get(record.name, 0) + 1
    return {
        record.node: record.name if count[record.name] == 1 else f"{record.name} ({short(record.node)})"
        for record in records
        if record.name
    }


def _coming(view: PlacementView, own: NodeId, situation: OwnSituation) -> dict[NodeId, NodeOutlook]:
    """The nodes that take a model or move to one."""
    facts = situation.facts
    found: dict[NodeId, NodeOutlook] = {}
    followers: dict[NodeId, NodeOutlook] = {}
    for need, candidates in placement.rounds(view):
        # This node knows of itself that it takes nothing; the others pass it over after a time.
        able = [node for node in candidates if node != own or (situation.free and need.model not in facts.avoided)]
        waited = facts.waited.get(need.model, 0.0)
        for place, node in enumerate(able[: need.count + FOLLOWERS]):
            seconds = max(0.0, placement.patience(need, candidates.index(node)) - waited)
            if place < need.count:
                found.setdefault(node, NodeOutlook(node, NextAct.TAKES, need.model, seconds))
            else:
                followers.setdefault(node, NodeOutlook(node, NextAct.FOLLOWS, need.model, seconds, able[0]))
    for need, movers in placement.moves(view):
        for mover in movers:
            if mover != own:  # this node says what it has decided
                found.setdefault(mover, NodeOutlook(mover, NextAct.MOVES, need.model))
    if facts.moves_to:
        found[own] = NodeOutlook(own, NextAct.MOVES, facts.moves_to, facts.moves_in)
    return followers | found


def _downloads(
    view: PlacementView, own: NodeId, situation: OwnSituation, fetch: FetchFacts
) -> dict[NodeId, NodeOutlook]:
    """The nodes that download a model, for each the first one."""
    found: dict[NodeId, NodeOutlook] = {}
    for need, candidates in fetching.rounds(view, fetch):
        refused = not situation.free or need.model in situation.facts.avoided or need.model in fetch.refused
        node = next((node for node in candidates if node != own or not refused), None)
        if node is not None:
            left = fetching.patience(candidates.index(node)) - situation.facts.waited.get(need.model, 0.0)
            seconds = max(0.0, left)
            found.setdefault(node, NodeOutlook(node, NextAct.TAKES, need.model, seconds, download=True))
    return found


def _next_act(view: PlacementView, record: NodeRecord, own: NodeId, situation: OwnSituation) -> NodeOutlook:
    """What a node does that takes no model and is not chosen to move."""
    node = record.node
    # A model that the next request loads again keeps a node from nothing.
    kept = [served for served in record.serves if served.loaded or not served.on_demand]
    taken = next((served.name for served in kept if served.on_demand), "")
    if record.leaving:
        return NodeOutlook(node, NextAct.LEAVES)
    if record.loading:
        # Only a node with one model that it may leave moves; others load a further one beside theirs.
        moves = any(served.movable for served in kept if served.on_demand)
        return NodeOutlook(node, NextAct.MOVES if moves else NextAct.LOADS, record.loading[0])
    if taken:
        last = view.score(taken).score > 0.0 and all(host.node == node for host, _ in view.hosts[taken])
        return NodeOutlook(node, NextAct.LAST_HOST if last else NextAct.STAYS, taken)
    if kept:
        return NodeOutlook(node, NextAct.SERVES, kept[0].name)
    if record.wants:
        return NodeOutlook(node, NextAct.ASKS, record.wants[0])
    if node == own and situation.works_on:
        return NodeOutlook(node, NextAct.WORKS, situation.works_on)
    return NodeOutlook(node, NextAct.IDLE if record.idle else NextAct.FREE)


def _model(
    view: PlacementView,
    model: str,
    records: Iterable[NodeRecord],
    own: NodeId,
    situation: OwnSituation,
    takers: Mapping[str, NodeOutlook],
) -> ModelOutlook:
    loading = tuple([record.node for record in view.loading.get(model, ())])
    taker = takers.get(model)
    if view.hosts.get(model) or loading or taker is not None:
        return ModelOutlook(model, loading, taker)
    return ModelOutlook(model, obstacles=tuple(_obstacles(view, model, records, own, situation)))


def _obstacles(
    view: PlacementView, model: str, records: Iterable[NodeRecord], own: NodeId, situation: OwnSituation
) -> Iterable[ObstacleFacts]:
    if model in view.split:
        yield ObstacleFacts(Obstacle.SPLIT)
        return
    dropped, failed = situation.dropped.get(model), situation.facts.avoided.get(model)
    if dropped is not None:
        yield ObstacleFacts(Obstacle.DROPPED, (own,), seconds=dropped)
    if failed is not None:
        yield ObstacleFacts(Obstacle.FAILED, (own,), seconds=failed[1], cause=failed[0])
    for record in records:
        for each in record.unserved:
            if each.name == model and record.node != own:
                kind = Obstacle.DROPPED if each.cause is UnservedCause.DROPPED else Obstacle.FAILED
                yield ObstacleFacts(kind, (record.node,), cause=each.reason)
    holders = [record for record in records if model in record.on_disk and not record.leaving]
    if not holders and dropped is None:
        yield ObstacleFacts(Obstacle.NO_FILE)
    holders = [record for record in holders if record.node != own or failed is None]
    idle = [record for record in holders if record.idle]
    short_of = [record for record in holders if not record.idle and not placement.holds(record, model)]
    rest = [record for record in holders if record not in idle and record not in short_of]
    if short_of:
        best = max(short_of, key=lambda record: (max(record.memory, record.room), record.memory))
        needed = placement.needed_memory(best, model)
        yield ObstacleFacts(Obstacle.NO_MEMORY, (best.node,), needed=needed, free=best.memory, room=best.room)
    for kind, found in (
        (Obstacle.BUSY, [record for record in rest if not placement.stands_by(record)]),
        (Obstacle.NOT_ALLOWED, idle),
    ):
        if found:
            yield ObstacleFacts(kind, tuple([record.node for record in found[:MAX_NODES]]))
    urgent = next((need.model for need in view.needs if need.model != model), "")
    waiting = [record for record in rest if placement.stands_by(record)]
    if waiting and urgent:
        yield ObstacleFacts(Obstacle.MORE_URGENT, tuple([record.node for record in waiting[:MAX_NODES]]), model=urgent)
    elif waiting:
        yield ObstacleFacts(Obstacle.BUSY, tuple([record.node for record in waiting[:MAX_NODES]]))
