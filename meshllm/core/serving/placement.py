"""Decides which requested model a standby node serves. Pure.

Equal views of the mesh give equal answers, so two standbys choose different models without talking to each other. A
node serves only models on its disk. A node that started a mesh without a model stays idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from meshllm.core.records import NodeId, NodeRecord


def choose(own: NodeRecord, others: Iterable[NodeRecord]) -> str | None:
    """The model that `own` should serve, or None. `others`: the records of the live nodes.

    The model with the fewest hosts comes first; of the standbys that have it, the one with the highest hash serves it.
    Models requested with --split are skipped.
    """
    records = [own, *others]
    hosts: dict[str, int] = {}
    force_split = {candidate.model for record in records for candidate in record.splits if candidate.force_split}
    for record in records:
        for name in record.wants:
            if name not in force_split:
                hosts.setdefault(name, 0)
    standbys = {record.node: frozenset(record.on_disk) for record in records if _stands_by(record)}
    if own.node not in standbys or not standbys[own.node] & hosts.keys():
        return None
    for record in records:
        for served in record.serves:
            if served.name in hosts:
                hosts[served.name] += 1
    while True:
        best = min(
            ((count, name) for name, count in hosts.items() if any(name in disk for disk in standbys.values())),
            default=None,
        )
        if best is None:
            return None
        name = best[1]
        chosen = max(
            (node for node, disk in standbys.items() if name in disk), key=lambda node: rendezvous_weight(node, name)
        )
        if chosen == own.node:
            return name
        hosts[name] += 1
        del standbys[chosen]


def may_be_taken(model: str, others: Iterable[NodeRecord]) -> bool:
    """Whether one of `others` is a standby that has `model` on its disk, so that it serves it if that is requested."""
    return any(model in record.on_disk and _stands_by(record) for record in others)


def rendezvous_weight(node: NodeId, model: str) -> bytes:
    """The weight of `node` for `model`; the node with the highest one is chosen. Source: rendezvous hashing (Thaler and
    Ravishankar, 1998)."""
    return blake2b(model.encode("utf-8", "surrogatepass"), digest_size=16, key=node).digest()


def _stands_by(record: NodeRecord) -> bool:
    return not (record.serves or record.wants or record.leaving or record.idle)
