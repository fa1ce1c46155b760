"""The split part of the status: shares of the nodes, forecast and measured time per token.

Times are seconds, sizes bytes, ids hexadecimal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshllm.core.records import NodeId
from meshllm.core.snapshot import ModelState, Snapshot
from meshllm.core.split.host import SplitState
from meshllm.core.split.lease import Lease, LeasePhase
from meshllm.core.split.planner import WorkerShare
from meshllm.web.console.status_model import StatusModel, TransportKind, transport_kind


class WorkerShareStatus(StatusModel):
    """The share of `node`: `layers` layers starting at layer `first`. `phase` is that of its lease, null for the host.

    `memory` is planned, `memory_used` what the node's engine processes take (null: unknown). `rtt` from the host, null
    if never measured. `transport` carries the host's tunnels to the worker, `sent` and `received` are their bytes,
    `rate` is bytes/s of both directions.
    """

    node: str
    name: str
    first: int
    layers: int
    memory: int
    memory_used: int | None = None
    phase: LeasePhase | None
    detail: str
    rtt: float | None
    transport: TransportKind | None
    sent: int
    received: int
    rate: int


class ForecastStatus(StatusModel):
    """Predicted time per token of one plan. `nodes`: the host first."""

    nodes: list[str]
    seconds_per_token: float


class SplitStatus(StatusModel):
    """A model that this node hosts as a pipeline split. `forecast` and `measured` are seconds for one computed token
    (null: unknown; drafted tokens that were accepted do not count). `corrected`: earlier measurements changed the
    forecast; `deviation` says how far it is off and why, empty if it is not. `considered` are the plans that were
    compared, `reason` explains the plan or what is missing."""

    model: str
    session: str
    generation: int
    committed: bool
    reason: str
    forecast: float | None
    measured: float | None
    corrected: bool = False
    deviation: str = ""
    considered: list[ForecastStatus]
    shares: list[WorkerShareStatus]


class WorkerLeaseStatus(StatusModel):
    """This node's part as a worker in the split of another host. `host_name` is empty if it is not known. `memory` is
    planned, `memory_used` what the worker process takes (null: unknown)."""

    model: str
    host: str
    host_name: str = ""
    session: str
    generation: int
    phase: LeasePhase
    detail: str
    first: int
    layers: int
    memory: int
    memory_used: int | None = None


@dataclass(frozen=True, slots=True)
class LeaseTraffic:
    """Bytes that the tunnels of a lease to one peer have carried, `rate` in bytes/s, `transport` "lane", "quic" or
    empty."""

    sent: int = 0
    received: int = 0
    rate: int = 0
    transport: str = ""


LeaseTrafficReader = Callable[[Lease], Mapping[NodeId, LeaseTraffic]]
"""Returns the traffic of a lease's tunnels by peer."""


def splits(snapshot: Snapshot, traffic: LeaseTrafficReader) -> list[SplitStatus]:
    """The splits that this node hosts or plans."""
    return [_split(snapshot, model, model.split, traffic) for model in snapshot.models if model.split is not None]


def _split(snapshot: Snapshot, model: ModelState, split: SplitState, traffic: LeaseTrafficReader) -> SplitStatus:
    lease, plan = split.lease, split.plan
    tunnels = traffic(lease) if lease is not None else {}
    return SplitStatus(
        model=model.name,
        session=lease.session.hex() if lease is not None else "",
        generation=lease.generation if lease is not None else 0,
        committed=split.committed,
        reason=split.status_text(),
        forecast=None if plan is None else round(plan.seconds, 6),
        measured=round(split.measured.seconds, 6) or None,
        corrected=plan is not None and plan.corrected,
        deviation=split.measured.text,
        considered=[
            ForecastStatus(nodes=[node.hex() for node in way.nodes], seconds_per_token=round(way.seconds, 6))
            for way in (plan.considered if plan is not None else ())
        ],
        shares=[_share(snapshot, model, split, share, tunnels) for share in (lease.shares if lease else ())],
    )


def _share(
    snapshot: Snapshot,
    model: ModelState,
    split: SplitState,
    share: WorkerShare,
    tunnels: Mapping[NodeId, LeaseTraffic],
) -> WorkerShareStatus:
    member = next((m for m in split.members if m.node == share.node), None)
    peers = snapshot.mesh.peers if snapshot.mesh is not None else ()
    peer = next((p for p in peers if p.node == share.node), None)
    tunnel = tunnels.get(share.node, LeaseTraffic())
    used = model.memory_used if member is None else peer.record.used if peer is not None else 0
    return WorkerShareStatus(
        node=share.node.hex(),
        name=peer.record.name if peer is not None else "",
        first=share.first,
        layers=share.layers,
        memory=share.memory,
        memory_used=used or None,
        phase=None if member is None else member.phase,
        detail="" if member is None else member.detail,
        rtt=None if peer is None or peer.rtt is None else round(peer.rtt, 6),
        transport=transport_kind(tunnel.transport),
        sent=tunnel.sent,
        received=tunnel.received,
        rate=tunnel.rate,
    )


def worker_lease(snapshot: Snapshot) -> WorkerLeaseStatus | None:
    """This node's lease as a worker, if it has one."""
    state, mesh = snapshot.worker_lease, snapshot.mesh
    share = state.lease.share(mesh.node) if state is not None and mesh is not None else None
    if state is None or share is None:
        return None
    peers = mesh.peers if mesh is not None else ()
    return WorkerLeaseStatus(
        model=state.lease.model,
        host=state.lease.host.hex(),
        host_name=next((peer.record.name for peer in peers if peer.node == state.lease.host), ""),
        session=state.lease.session.hex(),
        generation=state.lease.generation,
        phase=state.phase,
        detail=state.detail,
        first=share.first,
        layers=share.layers,
        memory=share.memory,
        memory_used=state.memory_used or None,
    )
