"""The mesh part of the status: this node's membership and the other nodes.

Times are seconds, sizes bytes, ids hexadecimal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pydantic import Field

from meshllm.core.demand.mesh_demand import totals
from meshllm.core.membership.views import (
    AwayMember,
    ClientView,
    JoinAttempt,
    JoinAttemptState,
    JoinPhase,
    MeshView,
    PeerStatus,
    PeerView,
)
from meshllm.core.records import NodeId, Role
from meshllm.core.serving.demand_outlook import DemandOutlook, ModelOutlook, NextAct, Obstacle
from meshllm.core.serving.demand_text import model_text, node_text
from meshllm.core.snapshot import Purpose
from meshllm.web.console.status_model import Modality, StatusModel, TransportKind, input_modalities, transport_kind

# Models of the mesh's demand in a status: the most wanted ones.
MAX_DEMAND = 100
# Nodes whose next act is in a status.
MAX_PLANS = 100


class JoinAttemptStatus(StatusModel):
    """An attempt to join the mesh through one bootstrap address. `peer`: the pinned start of the peer's node id."""

    peer: str
    addresses: list[str]
    state: JoinAttemptState
    reason: str


class ServedStatus(StatusModel):
    """A model that another node says it serves. 0: unknown. `size` is the file's size. `input_modalities` is null if
    the node does not report it, `calls_tools` if it is not known there."""

    name: str
    purpose: Purpose | None
    context_length: int
    slots: int
    size: int
    active: int
    waiting: int
    input_modalities: list[Modality] | None = None
    calls_tools: bool | None = None


class PeerInfo(StatusModel):
    """Another node. `rtt` is null if it was never measured; `transport` is what carries requests to it, null before the
    first. `active` and `waiting` are the last known requests at its models. `aliases` maps names in `on_disk` to
    another name of the same file. `owned`: one of the owner's own machines; others read the prompts they answer.
    `memory` are the bytes that it offers for further models; `memory_planned` those that its engine processes may come
    to, `memory_used` those that they take now (null: unknown). A peer that is dead or has left serves, asks for, takes
    and does nothing."""

    id: str
    name: str
    software: str
    status: PeerStatus
    since_seconds: float
    reason: str
    linked: bool
    owned: bool
    rtt: float | None
    transport: TransportKind | None
    addresses: list[str]
    models: list[str]
    wants: list[str]
    memory: int
    memory_planned: int | None = None
    memory_used: int | None = None
    active: int
    waiting: int
    serves: list[ServedStatus]
    on_disk: list[str]
    aliases: dict[str, str]


class ClientInfo(StatusModel):
    """A client that is linked to this node. `since_seconds`: for how long; `rtt` in seconds."""

    id: str
    name: str
    since_seconds: float
    rtt: float


class AwayInfo(StatusModel):
    """A member that is not here now. `models`: what it served last; `seen_seconds`: how long ago it was alive last."""

    id: str
    name: str
    models: list[str]
    seen_seconds: float


class DemandStatus(StatusModel):
    """What the mesh is asked for. `requests`: lately (a request counts half after 10 minutes), at least so many, on
    `nodes` nodes and their clients; `wishes`: nodes that were started with the model; `hosts`: nodes that serve it,
    with `active` and `waiting` requests; `loading`: nodes that load it. `outlook`: who takes it next, or why no node
    serves it, in sentences (empty: it is served); `obstacles`: the same for programs."""

    model: str
    requests: int
    nodes: int
    wishes: int
    hosts: int
    loading: int = 0
    active: int = 0
    waiting: int = 0
    outlook: str = ""
    obstacles: list[Obstacle] = Field(default_factory=list)


class NodePlanStatus(StatusModel):
    """What a node does next for the demand: `act` on `model`, in so many seconds (null: not known). `text`: the same as
    a predicate, for people."""

    node: str
    name: str
    act: NextAct
    model: str
    seconds: float | None
    text: str


class MeshStatus(StatusModel):
    """The mesh as this node sees it. `clients`: the number of those in `client_list`, which are linked to this node.
    `away`: members that were known and are not here now, the last seen first. `memory`, `memory_planned`,
    `memory_used`, `on_disk` and `aliases` (see PeerInfo) are what this node publishes. `demand`: the models that are
    asked for, most requests first. `plans`: what each node does next for them, this one first."""

    node: str
    mesh: str
    role: Role
    phase: JoinPhase
    reason: str
    incarnation: int
    addresses: list[str]
    wants: list[str]
    clients: int
    join_attempts: list[JoinAttemptStatus]
    peers: list[PeerInfo]
    memory: int
    memory_planned: int | None = None
    memory_used: int | None = None
    on_disk: list[str]
    aliases: dict[str, str]
    client_list: list[ClientInfo] = Field(default_factory=list)
    away: list[AwayInfo] = Field(default_factory=list)
    demand: list[DemandStatus] = Field(default_factory=list)
    plans: list[NodePlanStatus] = Field(default_factory=list)


def _join_attempt(attempt: JoinAttempt) -> JoinAttemptStatus:
    addresses = [str(address) for address in attempt.address.addresses]
    pin = attempt.address.pin.hex()
    return JoinAttemptStatus(peer=pin, addresses=addresses, state=attempt.state, reason=attempt.reason)


def _peer(peer: PeerView, transport: str, now: float) -> PeerInfo:
    record, gone = peer.record, peer.status in (PeerStatus.DEAD, PeerStatus.LEFT)
    return PeerInfo(
        id=peer.node.hex(),
        name=record.name,
        software=record.software,
        status=peer.status,
        since_seconds=round(max(0.0, now - peer.since), 3),
        reason=peer.reason,
        linked=peer.linked,
        owned=peer.owned,
        rtt=None if peer.rtt is None else round(peer.rtt, 6),
        transport=transport_kind(transport),
        addresses=[str(address) for address in record.addresses],
        models=[] if gone else [served.name for served in record.serves],
        wants=[] if gone else list(record.wants),
        memory=record.memory,
        memory_planned=None if gone else record.planned or None,
        memory_used=None if gone else record.used or None,
        active=0 if gone else sum(load.active for load in peer.loads),
        waiting=0 if gone else sum(load.waiting for load in peer.loads),
        serves=[] if gone else _serves(peer),
        on_disk=list(record.on_disk),
        aliases=dict(record.aliases),
    )


def _serves(peer: PeerView) -> list[ServedStatus]:
    loads = {load.name: load for load in peer.loads or peer.record.loads}
    found = []
    for served in peer.record.serves:
        load = loads.get(served.name)
        found.append(
            ServedStatus(
                name=served.name,
                purpose=served.purpose,
                context_length=served.context_length,
                slots=served.slots,
                size=served.size,
                active=0 if load is None else load.active,
                waiting=0 if load is None else load.waiting,
                input_modalities=input_modalities(served.vision),
                calls_tools=served.calls_tools,
            )
        )
    return found


def mesh_status(
    mesh: MeshView,
    transports: Mapping[NodeId, str],
    wants: tuple[str, ...],
    outlook: DemandOutlook | None,
    now: float,
) -> MeshStatus:
    """The mesh at `now`. `transports` maps peers to what carries requests to them, `wants` are this node's requested
    models, `outlook` is what is to come for the demand."""
    record = mesh.record
    return MeshStatus(
        node=mesh.node.hex(),
        mesh=mesh.mesh.hex(),
        role=mesh.role,
        phase=mesh.phase,
        reason=mesh.reason,
        incarnation=0 if record is None else record.version.incarnation,
        addresses=[] if record is None else [str(address) for address in record.addresses],
        wants=list(wants),
        clients=len(mesh.clients),
        join_attempts=[_join_attempt(attempt) for attempt in mesh.join_attempts],
        peers=[_peer(peer, transports.get(peer.node, ""), now) for peer in mesh.peers],
        memory=0 if record is None else record.memory,
        memory_planned=None if record is None else record.planned or None,
        memory_used=None if record is None else record.used or None,
        on_disk=[] if record is None else list(record.on_disk),
        aliases={} if record is None else dict(record.aliases),
        client_list=[_client(client, now) for client in mesh.clients],
        away=[_away(member, now) for member in mesh.away],
        demand=_demand(mesh, outlook or DemandOutlook(mesh.node)),
        plans=[] if outlook is None else _plans(outlook),
    )


def _plans(outlook: DemandOutlook) -> list[NodePlanStatus]:
    return [
        NodePlanStatus(
            node=step.node.hex(),
            name=outlook.labels.get(step.node, ""),
            act=step.act,
            model=step.model,
            seconds=None if step.seconds is None else round(step.seconds, 1),
            text=node_text(step, outlook),
        )
        for step in outlook.nodes[:MAX_PLANS]
    ]


def _demand(mesh: MeshView, outlook: DemandOutlook) -> list[DemandStatus]:
    records = [peer.record for peer in mesh.peers if peer.status is PeerStatus.ALIVE and peer.node != mesh.node]
    if mesh.record is not None:
        records.append(mesh.record)
    active, waiting = Counter[str](), Counter[str]()
    fresh = {peer.node: peer.loads for peer in mesh.peers}
    for record in records:
        for load in fresh.get(record.node) or record.loads:
            active[load.name] += load.active
            waiting[load.name] += load.waiting
    found = []
    for total in totals(records, outlook.models)[:MAX_DEMAND]:
        model = outlook.models.get(total.model, ModelOutlook(total.model))
        found.append(
            DemandStatus(
                model=total.model,
                requests=total.requests,
                nodes=total.nodes,
                wishes=total.wishes,
                hosts=total.hosts,
                loading=len(model.loading),
                active=active[total.model],
                waiting=waiting[total.model],
                outlook=model_text(model, outlook),
                obstacles=[facts.kind for facts in model.obstacles],
            )
        )
    return found


def _client(client: ClientView, now: float) -> ClientInfo:
    return ClientInfo(
        id=client.node.hex(),
        name=client.name,
        since_seconds=round(max(0.0, now - client.since), 3),
        rtt=round(client.rtt, 6),
    )


def _away(member: AwayMember, now: float) -> AwayInfo:
    return AwayInfo(
        id=member.node.hex(),
        name=member.name,
        models=list(member.served),
        seen_seconds=round(max(0.0, now - member.seen), 3),
    )
