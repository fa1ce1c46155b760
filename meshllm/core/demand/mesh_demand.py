"""The demand of the mesh: what the records of its living nodes ask for, added up.

Records name demanded models by keys (`levels.py`); names are those that the living nodes serve, want or have on their
disks, and those that this node's callers ask for. Demand for other models is left out: no node can serve them.

`totals` is for people. `scores` is for placement, where what one voice can claim is bounded: a voice is a node, or all
nodes that one member without the right to admit invited. Each counts with a limited number of requests, however many
models, levels and nodes it claims. `firm` leaves out the largest voice that is none of the owner's machines, so that no
such voice alone moves a model off a node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from meshllm.core.demand.counter import scaled
from meshllm.core.demand.levels import model_key, requests_of
from meshllm.core.records import NodeId, NodeRecord
from meshllm.core.routing.model_names import means_of

# What a standing wish (`--model`) counts in a voice's demand, in requests.
WISH_REQUESTS = 4.0
# Requests that all claims of one voice count with together, and those of a voice that is not the owner's, whose largest
# claims alone count.
VOICE_REQUESTS = 64.0
GUEST_VOICE_REQUESTS = 8.0
GUEST_VOICE_MODELS = 4


@dataclass(frozen=True, slots=True)
class DemandTotal:
    """The demand for one model. `requests`: lately, decayed, at least so many; `nodes` whose callers make them;
    `wishes`: nodes that were started with it; `hosts`: nodes that serve it."""

    model: str
    requests: int
    nodes: int
    wishes: int
    hosts: int


@dataclass(frozen=True, slots=True)
class DemandClaim:
    """What one living node asks for. `voice`: under which it counts; `owned`: it is one of the owner's machines."""

    record: NodeRecord
    voice: NodeId
    owned: bool


@dataclass(frozen=True, slots=True)
class DemandScore:
    """How much a model is wanted, in requests as far as they count; `firm`: without the largest voice of others."""

    score: float
    firm: float


def totals(records: Iterable[NodeRecord], known: Iterable[str] = ()) -> tuple[DemandTotal, ...]:
    """The demand in the records of living nodes, most requests first. `known`: more names of models."""
    requests: dict[int, float] = defaultdict(float)
    nodes: dict[int, int] = defaultdict(int)
    wishes: dict[str, int] = defaultdict(int)
    hosts: dict[str, int] = defaultdict(int)
    names = set(known)
    records = list(records)
    meaning = meanings(records)
    for record in records:
        for entry in record.demand:
            requests[entry.key] += requests_of(entry.level)
            nodes[entry.key] += 1
        for model in wishes_in(record, meaning):
            wishes[model] += 1
        for model in {served.name for served in record.serves}:
            hosts[model] += 1
        names.update(names_of_models(record), wishes_in(record, meaning))
    found = [
        DemandTotal(model, int(requests[key]), nodes[key], wishes[model], hosts[model])
        for model in names
        if (key := model_key(model)) in nodes or model in wishes
    ]
    return tuple(sorted(found, key=lambda total: (-total.requests, -total.wishes, total.model)))


def scores(claims: Iterable[DemandClaim], known: Iterable[str] = ()) -> dict[str, DemandScore]:
    """How much each demanded model is wanted. The order of `claims` does not matter. `known`: more names of models."""
    voices: dict[NodeId, dict[int, float]] = {}
    owned: dict[NodeId, bool] = {}
    names = set(known)
    claims = list(claims)
    meaning = meanings([claim.record for claim in claims])
    for claim in claims:
        said = voices.setdefault(claim.voice, {})
        owned[claim.voice] = owned.get(claim.voice, True) and claim.owned
        for entry in claim.record.demand:
            said[entry.key] = said.get(entry.key, 0.0) + requests_of(entry.level)
        for model in wishes_in(claim.record, meaning):
            said[model_key(model)] = said.get(model_key(model), 0.0) + WISH_REQUESTS
        names.update(names_of_models(claim.record), wishes_in(claim.record, meaning))
    score: dict[int, float] = defaultdict(float)
    largest: dict[int, float] = defaultdict(float)
    # In the order of the ids: sums of floats in another order could differ, and equal views must give equal answers.
    for voice in sorted(voices):
        for key, count in _counted(voices[voice], owned=owned[voice]).items():
            score[key] += count
            if not owned[voice]:
                largest[key] = max(largest[key], count)
    found = {model: key for model in sorted(names) if (key := model_key(model)) in score}
    return {model: DemandScore(score[key], max(0.0, score[key] - largest[key])) for model, key in found.items()}


def names_in(record: NodeRecord) -> Iterable[str]:
    """The models that a record names: served, on the disk, requested."""
    yield from names_of_models(record)
    yield from record.wants


def names_of_models(record: NodeRecord) -> Iterable[str]:
    """The models that a node has: served, on the disk, being loaded."""
    yield from (model.name for model in record.serves)
    yield from record.on_disk
    yield from record.loading


def meanings(
    records: Collection[NodeRecord], wished: Collection[str] | None = None, own: Iterable[str] = ()
) -> Mapping[str, tuple[str, ...]]:
    """What wishes mean that are not the exact names of models: the models that the living nodes have under them.
    `wished`: instead of what the records wish for; `own`: models beside those of the records."""
    if wished is None:
        wished = {model for record in records for model in record.wants}
    if not wished:
        return {}
    has = {name for record in records for name in names_of_models(record)}.union(own)
    same = {other: name for record in records for other, name in record.aliases}
    return means_of(wished, has, same)


def wishes_in(record: NodeRecord, meaning: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The models that a node wishes for: each once, by the names that the mesh has for them, if there is one each."""
    found = [means[0] if len(means := meaning.get(model, ())) == 1 else model for model in record.wants]
    return list(dict.fromkeys(found))


def _counted(said: Mapping[int, float], *, owned: bool) -> dict[int, float]:
    """What the claims of one voice count with."""
    if owned:
        return scaled(said, VOICE_REQUESTS)
    first = sorted(said.items(), key=lambda item: (-item[1], item[0]))[:GUEST_VOICE_MODELS]
    return scaled(dict(first), GUEST_VOICE_REQUESTS)
