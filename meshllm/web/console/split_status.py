"""What the status says of splits: who carries what, what was forecast and what came of it.

Times are seconds, sizes bytes; ids are hexadecimal. Fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import NodeId
from meshllm.core.snapshot import Snapshot
from meshllm.core.split.host import SplitState
from meshllm.core.split.lease import Lease
from meshllm.core.split.planner import WorkerShare
from meshllm.web.console.status_model import StatusModel


class WorkerShareStatus(StatusModel):
    """`layers` of the model from `first` on, carried by `node`; `phase` and `detail` of its part in the lease.

    `rtt` from the host, null if never measured; `via`: "lane" or "quic", what the host's tunnels to it run over;
    `sent` and `received` by them, and `rate` in bytes/s of late, both ways together.
    """

    node: str
    name: str
    first: int
    layers: int
    memory: int
    phase: str
    detail: str
    rtt: float | None
    via: str
    sent: int
    received: int
    rate: int


class ForecastStatus(StatusModel):
    """What one way to serve the model promised: `nodes`, the host first, and the time for one token."""

    nodes: list[str]
    seconds_per_token: float


class SplitStatus(StatusModel):
    """A model that this node hosts with others. `forecast` and `measured` are seconds for one token (null: not yet
    known), `considered` the ways that there were; `reason` says why it is so, or what is missing."""

    model: str
    session: str
    generation: int
    committed: bool
    reason: str
    forecast: float | None
    measured: float | None
    considered: list[ForecastStatus]
    shares: list[WorkerShareStatus]


class WorkerLeaseStatus(StatusModel):
    """What this node carries for the host of a split."""

    model: str
    host: str
    session: str
    generation: int
    phase: str
    detail: str
    first: int
    layers: int
    memory: int


@dataclass(frozen=True, slots=True)
class LeaseTraffic:
    """Bytes that the tunnels of a lease to one peer have carried, per second of late, and what they run over."""

    sent: int = 0
    received: int = 0
    rate: int = 0
    via: str = ""


Traffic = Callable[[Lease], Mapping[NodeId, LeaseTraffic]]
"""What the tunnels of a lease have carried, by peer."""


def splits(snapshot: Snapshot, traffic: Traffic, guesses: Mapping[str, DraftCounts]) -> list[SplitStatus]:
    """The splits that this node hosts, or would like to."""
    found = []
    for model in snapshot.models:
        if model.split is not None:
            measured = guesses.get(model.name, DraftCounts()).seconds_per_token
            found.append(_split(snapshot, model.name, model.split, traffic, measured))
    return found


def _split(
    snapshot: Snapshot,
    model: str,
    split: SplitState,
    traffic: Traffic,
    measured: float | None,
) -> SplitStatus:
    lease, plan = split.lease, split.plan
    carried = traffic(lease) if lease is not None else {}
    return SplitStatus(
        model=model,
        session=lease.session.hex() if lease is not None else "",
        generation=lease.generation if lease is not None else 0,
        committed=split.committed,
        reason=split.status_text(),
        forecast=None if plan is None else round(plan.seconds, 6),
        measured=None if measured is None else round(measured, 6),
        considered=[
            ForecastStatus(nodes=[node.hex() for node in way.nodes], seconds_per_token=round(way.seconds, 6))
            for way in (plan.considered if plan is not None else ())
        ],
        shares=[_share(snapshot, split, share, carried) for share in (lease.shares if lease is not None else ())],
    )


def _share(
    snapshot: Snapshot, split: SplitState, share: WorkerShare, carried: Mapping[NodeId, LeaseTraffic]
) -> WorkerShareStatus:
    member = next((m for m in split.members if m.node == share.node), None)
    peers = snapshot.mesh.peers if snapshot.mesh is not None else ()
    peer = next((p for p in peers if p.node == share.node), None)
    tunnel = carried.get(share.node, LeaseTraffic())
    return WorkerShareStatus(
        node=share.node.hex(),
        name=peer.record.name if peer is not None else "",
        first=share.first,
        layers=share.layers,
        memory=share.memory,
        phase="host" if member is None else member.phase.value,
        detail="" if member is None else member.detail,
        rtt=None if peer is None or peer.rtt is None else round(peer.rtt, 6),
        via=tunnel.via,
        sent=tunnel.sent,
        received=tunnel.received,
        rate=tunnel.rate,
    )


def lent(snapshot: Snapshot) -> WorkerLeaseStatus | None:
    """What this node carries for another, if anything."""
    state, mesh = snapshot.worker_lease, snapshot.mesh
    share = state.lease.share(mesh.node) if state is not None and mesh is not None else None
    if state is None or share is None:
        return None
    return WorkerLeaseStatus(
        model=state.lease.model,
        host=state.lease.host.hex(),
        session=state.lease.session.hex(),
        generation=state.lease.generation,
        phase=state.phase.value,
        detail=state.detail,
        first=share.first,
        layers=share.layers,
        memory=share.memory,
    )
