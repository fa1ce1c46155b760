"""Decides which node serves which demanded model: what is needed, who takes it, who steps back, who moves. Pure.

Equal views of the mesh give equal answers, so nodes agree without talking to each other. A node takes only models on
its disk that fit into the memory that it has now. A node that started a mesh without a model stays idle.

A request for a model that no node has in memory does not wait for that: it goes to the first of `load_order`, which
loads the model (`routing/on_demand.py`).

What others claim has a bounded effect. A node that would be the first to take a model and does nothing is passed over:
the next ones take it after `PATIENCE_SECONDS`, twice as many each time. Made-up demand is bounded in `mesh_demand`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from meshllm.core.demand.mesh_demand import DemandScore
from meshllm.core.records import NodeId, NodeRecord, ServedModel

# How long the first candidate for a model has to take it before others do.
PATIENCE_SECONDS = 15.0
# A model needs its file's size, and this part of it for its context at least.
CONTEXT_PART = 0.1
# A node becomes a further host of a model only if that is wanted so many times more, per host, than the one it serves.
MOVE_MARGIN = 2.0
MIB = 1 << 20
NO_SCORE = DemandScore(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Need:
    """A model that needs a host. `extra`: it has hosts already; `count`: so many nodes take it at once, those that load
    it already not counted. `relief`: its only host is to leave it for a model without one."""

    model: str
    extra: bool = False
    count: int = 1
    relief: bool = False


class PlacementView:
    """What placement decides on: the records of all living nodes, how much each model is wanted (`scores`), and which
    nodes are the owner's machines (`owned`)."""

    def __init__(
        self, records: Iterable[NodeRecord], scores: Mapping[str, DemandScore], owned: Collection[NodeId]
    ) -> None:
        self.scores = scores
        self.owned = owned
        self.standbys: list[NodeRecord] = []
        self.hosts: dict[str, list[tuple[NodeRecord, ServedModel]]] = {}
        self.loading: dict[str, list[NodeRecord]] = {}
        self.split: set[str] = set()  # models requested with --split
        self._ranked: dict[str, list[NodeId]] = {}
        self._movers: dict[Need, list[NodeId]] = {}
        for record in records:
            if stands_by(record):
                self.standbys.append(record)
            self.split.update(candidate.model for candidate in record.splits if candidate.force_split)
            for model in record.loading:
                self.loading.setdefault(model, []).append(record)
            for served in record.serves:
                self.hosts.setdefault(served.name, []).append((record, served))
        self.needs = self._needs()
        self.needs += self._reliefs()

    def loaders(self, model: str) -> int:
        """How many nodes should load `model` at a time: one, or half as many as have their slots taken, so that a model
        that many ask for has enough hosts after a few rounds."""
        return max(1, sum(served.pressed for _, served in self.hosts.get(model, ())) // 2)

    def movers(self, need: Need) -> list[NodeId]:
        """The nodes that move to the model of `need`: of those that may leave theirs, the ones with the highest
        hashes."""
        found = self._movers.get(need)
        if found is None:
            found = self._movers[need] = _movers(self, need)
        return found

    def candidates(self, model: str) -> list[NodeId]:
        """Which standbys could take `model`, the first one first."""
        found = self._ranked.get(model)
        if found is None:
            found = self._ranked[model] = ranked(self.standbys, model)
        return found

    def score(self, model: str) -> DemandScore:
        """How much `model` is wanted."""
        return self.scores.get(model, NO_SCORE)

    def _needs(self) -> list[Need]:
        """The models that need a host, most urgent first: without a host before those with busy ones, then by demand.
        Models requested with --split are skipped, and those that a node is loading."""
        found = []
        for model, score in self.scores.items():
            count = self.loaders(model) - len(self.loading.get(model, ()))
            if model in self.split or count <= 0:
                continue
            hosts = self.hosts.get(model, ())
            if not hosts or 2 * sum(served.pressed for _, served in hosts) > len(hosts):
                found.append((bool(hosts), -score.firm, -score.score, model, count))
        return [Need(model, extra, count) for extra, _, _, model, count in sorted(found)]

    def _reliefs(self) -> list[Need]:
        """For each model without a host that no node can take: a model whose only host holds it, and that another node
        can serve. Once it does, the host moves. The least wanted of such models."""
        found: dict[str, Need] = {}
        for need in self.needs:
            if need.extra or self.score(need.model).firm <= 0.0 or self.candidates(need.model) or self.movers(need):
                continue
            for model in sorted(self.hosts, key=lambda name: (self.score(name).firm, name)):
                if len(self.hosts[model]) > 1 or self.loading.get(model) or model in found:
                    continue
                ((record, served),) = self.hosts[model]
                if may_move(record, served) and not served.pressed and holds(record, need.model, served.size):
                    relief = Need(model, extra=True, relief=True)
                    if self.candidates(model) or self.movers(relief):
                        found[model] = relief
                        break
        return list(found.values())


def choose(
    view: PlacementView, own: NodeRecord, waited: Mapping[str, float], avoided: Collection[str] = ()
) -> Need | None:
    """What the standby `own` should take, or None. `waited`: for how many seconds each need has been known to this
    node; `avoided`: models that it could not serve lately."""
    if not stands_by(own):
        return None
    for need, able in rounds(view, own.node):
        if need.model in avoided or own.node not in able:
            continue
        if waited.get(need.model, 0.0) >= patience(need, able.index(own.node)):
            return need
    return None


def rounds(view: PlacementView, own: NodeId | None = None) -> Iterator[tuple[Need, list[NodeId]]]:
    """The needs, the most urgent first, each with the standbys that could take it and take no more urgent one. `own`
    is none of those that do: it may avoid a model, and is free for another one then."""
    busy: set[NodeId] = set()
    for need in view.needs:
        able = [node for node in view.candidates(need.model) if node not in busy]
        yield need, able
        busy.update([node for node in able[: need.count] if node != own])


def patience(need: Need, place: int) -> float:
    """For how many seconds a need must be known before the standby at `place` (0: the first) takes it."""
    return PATIENCE_SECONDS * (place // need.count).bit_length()


def move(view: PlacementView, own: NodeRecord) -> Need | None:
    """What `own`, which serves a model for the mesh's demand, should serve instead; None if nothing.

    A model without a standby gets a host of a model that no node wants, or that has other hosts with free slots. If it
    has a host already, it must be wanted more by a clear margin.
    """
    return next((need for need, nodes in moves(view) if own.node in nodes), None)


def moves(view: PlacementView) -> Iterator[tuple[Need, list[NodeId]]]:
    """The needs without a standby, the most urgent first, each with the hosts that should serve it instead of their own
    model (none: no host may)."""
    return ((need, view.movers(need)) for need in view.needs if not view.candidates(need.model))


def may_leave(view: PlacementView, own: NodeRecord, model: str) -> bool:
    """Whether `own` may stop serving `model`, which it took: one host at a time, and the last one only if no node wants
    the model. Nodes that are about to serve another model do not count as hosts."""
    if view.score(model).score <= 0.0:
        return True
    hosts = view.hosts.get(model, [])
    staying = [record for record, _ in hosts if record.node != own.node and not record.loading]
    if own.node in view.owned:
        staying = [record for record in staying if record.node in view.owned]
    if not staying or any(served.pressed for _, served in hosts):
        return False
    leaving = [record.node for record, served in hosts if served.movable or record.node == own.node]
    return own.node == min(leaving, key=lambda node: rendezvous_weight(node, model))


def may_move(record: NodeRecord, served: ServedModel) -> bool:
    """Whether the node may leave the model that it serves for another one, as far as it says so."""
    return served.movable and served.on_demand and not record.loading and len(record.serves) == 1


def _movers(view: PlacementView, need: Need) -> list[NodeId]:
    model = need.model
    wanted = view.score(model).firm / (1 + len(view.hosts.get(model, ())))
    able = [
        record.node
        for left, hosts in view.hosts.items()
        if left != model and wanted > 0.0
        if not need.extra or need.relief or wanted >= MOVE_MARGIN * view.score(left).firm / len(hosts)
        for record, served in hosts
        if may_move(record, served) and holds(record, model, served.size) and may_leave(view, record, left)
    ]
    able.sort(key=lambda node: rendezvous_weight(node, model), reverse=True)
    return able[: need.count]


def is_surplus(view: PlacementView, own: NodeRecord, need: Need, *, serving: bool) -> bool:
    """Whether `own`, which took `need` and loads or serves it, should step back: another node does the same.

    Of two that load it, the one with the higher hash stays; one that serves it stays before one that loads it. A node
    of the owner does not step back for another's.
    """
    weight = rendezvous_weight(own.node, need.model)

    def counts(record: NodeRecord) -> bool:
        return record.node != own.node and (own.node not in view.owned or record.node in view.owned)

    before = 0
    for record in view.loading.get(need.model, ()):
        if not serving and counts(record) and rendezvous_weight(record.node, need.model) > weight:
            before += 1
    if before >= view.loaders(need.model):
        return True
    if need.extra:
        return False
    for record, served in view.hosts.get(need.model, ()):
        higher = rendezvous_weight(record.node, need.model) > weight
        if counts(record) and (not serving or not served.on_demand or higher):
            return True
    return False


def ranked(records: Iterable[NodeRecord], model: str) -> list[NodeId]:
    """Which of the nodes could take `model`, the first one first. Those whose memory is not known are last."""
    able = [record for record in records if holds(record, model)]
    able.sort(key=lambda record: (record.memory > 0, rendezvous_weight(record.node, model)), reverse=True)
    return [record.node for record in able]


def holds(record: NodeRecord, model: str, freed: int = 0) -> bool:
    """Whether `model` is on the node's disk and fits into its memory, as far as both are known. `freed`: bytes that
    would be free besides."""
    if model not in record.on_disk:
        return False
    needed, free = needed_memory(record, model), record.memory + freed
    return not needed or not free or needed <= free


def needed_memory(record: NodeRecord, model: str) -> int:
    """Bytes that `model`, which is on the node's disk, takes at least; 0 if its size is not known."""
    return int(size_on_disk(record, model) * (1 + CONTEXT_PART))


def size_on_disk(record: NodeRecord, model: str) -> int:
    """Bytes of the model's file there; 0 if they are not known."""
    place = record.on_disk.index(model) if model in record.on_disk else len(record.disk_sizes)
    return record.disk_sizes[place] * MIB if place < len(record.disk_sizes) else 0


def stands_by(record: NodeRecord) -> bool:
    """Whether the node is free to take a model: it has none in memory, except for models that it loads on request."""
    if record.wants or record.loading or record.leaving or record.idle:
        return False
    return not any(served.loaded or not served.on_demand for served in record.serves)


def may_load(record: NodeRecord, model: str) -> bool:
    """Whether the node loads `model` of its disk for a request: it fits, after others were unloaded if need be."""
    if not record.room or record.leaving or model not in record.on_disk:
        return False
    return size_on_disk(record, model) * (1 + CONTEXT_PART) <= record.room


def is_refused(record: NodeRecord, model: str) -> bool:
    """Whether the node could not serve or download `model` lately, or its owner dropped it. It says so itself, and no
    longer once it would try again."""
    return any(each.name == model for each in record.unserved)


def load_order(records: Iterable[NodeRecord], model: str, owned: Collection[NodeId]) -> list[NodeRecord]:
    """The nodes that load `model` for a request, the first one first, whichever node the request comes to: a node that
    loads it already, one with free memory, one of the owner's (`owned`), then by weight. Those that have it in `serves`
    load it again."""
    able = [
        record
        for record in records
        if may_load(record, model)
        or (not record.leaving and (model in record.loading or any(m.name == model for m in record.serves)))
    ]

    def preference(record: NodeRecord) -> tuple[bool, bool, bool, bytes]:
        size = size_on_disk(record, model) * (1 + CONTEXT_PART)
        free = size <= record.memory if record.memory else stands_by(record)
        return model in record.loading, free, record.node in owned, rendezvous_weight(record.node, model)

    return sorted(able, key=preference, reverse=True)


def may_be_taken(model: str, others: Iterable[NodeRecord]) -> bool:
    """Whether one of `others` loads `model`, or is a standby that takes it if that is requested."""
    return any(model in record.loading or (holds(record, model) and stands_by(record)) for record in others)


def rendezvous_weight(node: NodeId, model: str) -> bytes:
    """The weight of `node` for `model`; the node with the highest one is chosen. Source: rendezvous hashing (Thaler and
    Ravishankar, 1998)."""
    return blake2b(model.encode("utf-8", "surrogatepass"), digest_size=16, key=node).digest()
