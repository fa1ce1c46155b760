"""What the status says of the mesh: the other nodes, and how this one found them.

Times are seconds, sizes bytes. Fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshllm.core.membership.views import JoinAttempt, MeshView, PeerView
from meshllm.core.records import NodeId
from meshllm.web.console.status_model import StatusModel
from meshllm.web.gateway.model_list import modalities


class StepStatus(StatusModel):
    """One way into the mesh that was tried: `peer` is what is known of its id; `state` and `reason` in words."""

    peer: str
    addresses: list[str]
    state: str
    reason: str


class ServedStatus(StatusModel):
    """A model that another node answers for, as it says. 0: unknown. `size` is that of the file; `input_modalities`:
    "text", and "image" where it sees; null where the node does not say."""

    name: str
    purpose: str | None
    context_length: int
    slots: int
    size: int
    active: int
    waiting: int
    input_modalities: list[str] | None = None


class PeerInfo(StatusModel):
    """Another node. `rtt` in seconds, null if never measured; `via`: "lane" or "quic" for what requests to it take,
    "" while there have been none; `active` and `waiting` are requests at its models, as far as we heard;
    `aliases`: names in `on_disk` of files that have another name there, each with that one."""

    id: str
    name: str
    software: str
    status: str
    since_seconds: float
    reason: str
    linked: bool
    rtt: float | None
    via: str
    addresses: list[str]
    models: list[str]
    wants: list[str]
    memory: int
    active: int
    waiting: int
    serves: list[ServedStatus]
    on_disk: list[str]
    aliases: dict[str, str]


class MeshStatus(StatusModel):
    """The mesh as this node sees it. `phase`: alone, dialling, syncing, joined or failed; ids are hexadecimal.

    `memory` (bytes), `on_disk` and `aliases` (see PeerStatus) are what this node tells the others that it has.
    """

    node: str
    mesh: str
    role: str
    phase: str
    reason: str
    incarnation: int
    addresses: list[str]
    wants: list[str]
    clients: int
    steps: list[StepStatus]
    peers: list[PeerInfo]
    memory: int
    on_disk: list[str]
    aliases: dict[str, str]


def _step(step: JoinAttempt) -> StepStatus:
    addresses = [str(address) for address in step.address.addresses]
    return StepStatus(peer=step.address.pin.hex(), addresses=addresses, state=step.state.value, reason=step.reason)


def _peer(peer: PeerView, via: str, now: float) -> PeerInfo:
    record = peer.record
    return PeerInfo(
        id=peer.node.hex(),
        name=record.name,
        software=record.software,
        status=peer.status.value,
        since_seconds=round(max(0.0, now - peer.since), 3),
        reason=peer.reason,
        linked=peer.linked,
        rtt=None if peer.rtt is None else round(peer.rtt, 6),
        via=via,
        addresses=[str(address) for address in record.addresses],
        models=[served.name for served in record.serves],
        wants=list(record.wants),
        memory=record.memory,
        active=sum(load.active for load in peer.loads),
        waiting=sum(load.waiting for load in peer.loads),
        serves=_serves(peer),
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
                purpose=None if served.purpose is None else served.purpose.value,
                context_length=served.context_length,
                slots=served.slots,
                size=served.size,
                active=0 if load is None else load.active,
                waiting=0 if load is None else load.waiting,
                input_modalities=None if served.vision is None else modalities(served.vision),
            )
        )
    return found


def mesh_status(mesh: MeshView, vias: Mapping[NodeId, str], wants: tuple[str, ...], now: float) -> MeshStatus:
    """The mesh at `now`; `vias` says what requests to a peer take, `wants` what was asked for here."""
    record = mesh.record
    return MeshStatus(
        node=mesh.node.hex(),
        mesh=mesh.mesh.hex(),
        role=mesh.role.value,
        phase=mesh.phase.value,
        reason=mesh.reason,
        incarnation=0 if record is None else record.version.incarnation,
        addresses=[] if record is None else [str(address) for address in record.addresses],
        wants=list(wants),
        clients=mesh.clients,
        steps=[_step(step) for step in mesh.join_attempts],
        peers=[_peer(peer, vias.get(peer.node, ""), now) for peer in mesh.peers],
        memory=0 if record is None else record.memory,
        on_disk=[] if record is None else list(record.on_disk),
        aliases={} if record is None else dict(record.aliases),
    )
