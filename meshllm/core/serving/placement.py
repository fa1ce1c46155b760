"""Who should serve what: which wanted model a node without one of its own takes.

Law: a pure function of what is known of the mesh; equal views give equal answers, so that two standbys take different
models where they can, without a word between them. Nothing is fetched for others: a node takes what lies on its disk.
Whoever founded the mesh and was asked for nothing stays idle: it came to look, and for others to join.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from meshllm.core.records import NodeId, NodeRecord


def choose(own: NodeRecord, others: Iterable[NodeRecord]) -> str | None:
    """What `own` should serve, or None. `others` are the records of the nodes that live (and nobody else's).

    The model with the fewest hosts goes first, to the standby that hashing puts first among those that have it. What
    somebody wants to be split is nobody's to take whole.
    """
    records = [own, *others]
    hosts: dict[str, int] = {}
    apart = {candidate.model for record in records for candidate in record.splits if candidate.force_split}
    for record in records:
        for name in record.wants:
            if name not in apart:
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
        chosen = max((node for node, disk in standbys.items() if name in disk), key=lambda node: weight(node, name))
        if chosen == own.node:
            return name
        hosts[name] += 1
        del standbys[chosen]


def weight(node: NodeId, model: str) -> bytes:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): the highest weight has the model."""
    return blake2b(model.encode("utf-8", "surrogatepass"), digest_size=16, key=node).digest()


def _stands_by(record: NodeRecord) -> bool:
    return not (record.serves or record.wants or record.leaving or record.idle)
