"""Decides which standby downloads a demanded model that no node can serve from its disk. Pure.

As in `placement`, equal views give equal answers: of the nodes whose owners allow it, the one with the highest hash
downloads, and says so in its record (`loading`). Only models of the catalogue, whose digests are known, and files on
disks of the owner's machines are downloaded. Demand of one voice that is not the owner's makes no node download.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from meshllm.core.records import NodeId, NodeRecord
from meshllm.core.serving import placement
from meshllm.core.serving.placement import CONTEXT_PART, PATIENCE_SECONDS, Need, PlacementView, rendezvous_weight

# How long a model must have been demanded, with no node that could load it, before one downloads it: a node with the
# file may just restart. The next candidates follow with the patience of placement.
DOWNLOAD_PATIENCE_SECONDS = PATIENCE_SECONDS
# The claim of a node that it loads a model keeps others from downloading it for so long: 20 GB at 6 MB/s.
DOWNLOAD_CLAIM_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class FetchFacts:
    """What a node knows that may download. `records`: of all living nodes, their claims to load a model as far as they
    count for `DOWNLOAD_CLAIM_SECONDS`; `catalog`: bytes of the catalogue's models; `refused`: models that the owner
    dropped."""

    records: Collection[NodeRecord] = ()
    catalog: Mapping[str, int] = field(default_factory=dict)
    refused: Collection[str] = ()


def choose(
    view: PlacementView, own: NodeRecord, facts: FetchFacts, waited: Mapping[str, float], avoided: Collection[str]
) -> Need | None:
    """What the standby `own`, which takes nothing of its disk, should download; None if nothing. `waited`, `avoided`:
    see `placement.choose`."""
    if not own.download_room or not placement.stands_by(own):
        return None
    for need, able in rounds(view, facts, own.node):
        if need.model in avoided or need.model in facts.refused or own.node not in able:
            continue
        if waited.get(need.model, 0.0) >= patience(able.index(own.node)):
            return need
    return None


def rounds(view: PlacementView, facts: FetchFacts, own: NodeId | None = None) -> Iterator[tuple[Need, list[NodeId]]]:
    """The needs that a download meets, the most urgent first, each with the standbys that could download the model and
    take no more urgent one. `own`: see `placement.rounds`."""
    busy: set[NodeId] = set()
    for need, able in placement.rounds(view, own):
        if view.candidates(need.model):
            busy.update([node for node in able[: need.count] if node != own])
        elif _is_missing(view, need, facts):
            known = downloaders(facts.records, need.model, view.owned, facts.catalog)
            free = [node for node in known if node not in busy]
            yield need, free
            busy.update([node for node in free[:1] if node != own])


def patience(place: int) -> float:
    """For how many seconds a need must be known before the standby at `place` (0: the first) downloads the model."""
    return DOWNLOAD_PATIENCE_SECONDS + PATIENCE_SECONDS * place.bit_length()


def _is_missing(view: PlacementView, need: Need, facts: FetchFacts) -> bool:
    """Whether no node serves or loads the model, or could load it from its disk, and it is wanted enough."""
    model = need.model
    if need.extra or view.score(model).firm <= 0.0 or view.hosts.get(model) or view.movers(need):
        return False
    return not any(model in record.loading or placement.may_load(record, model) for record in facts.records)


def size_of(records: Iterable[NodeRecord], model: str, owned: Collection[NodeId], catalog: Mapping[str, int]) -> int:
    """Bytes of `model` if it could be downloaded, from the mesh or from the hub; else 0."""
    if model in catalog:
        return catalog[model]
    holders = [record for record in records if record.node in owned and not record.leaving and model in record.on_disk]
    return max([placement.size_on_disk(record, model) for record in holders], default=0)


def downloaders(
    records: Collection[NodeRecord], model: str, owned: Collection[NodeId], catalog: Mapping[str, int]
) -> list[NodeId]:
    """Which standbys could download `model`, the first one first: their owners allow it, and it fits into what they may
    download and into the memory that they have now, and they have not failed to lately. None if a node that is asked to
    serve it gets the file itself."""
    size = size_of(records, model, owned, catalog)
    needed = size * (1 + CONTEXT_PART)
    if not size or any(model in record.wants and (not record.memory or needed <= record.memory) for record in records):
        return []
    able = [
        record.node
        for record in records
        if size <= record.download_room
        if placement.stands_by(record) and needed <= record.memory and model not in record.on_disk
        if not placement.is_refused(record, model)
    ]
    return sorted(able, key=lambda node: rendezvous_weight(node, model), reverse=True)
