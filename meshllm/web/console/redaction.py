"""What somebody on another machine is told of this node: its status, without what is its owner's alone.

Law: only what is written down here is passed on, field by field, so that a field that comes to be is withheld until
somebody decides about it. Never passed on are paths, processes, addresses of the network, ids that let in, and words
that somebody else chose: errors quote whatever went wrong, and with it whatever it was about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from meshllm.web.console.mesh_status import MeshStatus, PeerInfo
from meshllm.web.console.split_status import SplitStatus, WorkerLeaseStatus, WorkerShareStatus
from meshllm.web.console.status import (
    BackendStatus,
    BannedStatus,
    EngineStatus,
    FileStatus,
    LoadStatus,
    ModelStatus,
    NodeStatus,
    ProgressStatus,
    ServerStatus,
    SharingStatus,
    SpeculationStatus,
)

WITHHELD = "Why is told on its own machine only."
# Paths, URLs and addresses, as they would stand in a sentence.
_PLACE = re.compile(r"[/\\@]|\d+\.\d+\.\d+\.\d+|[0-9A-Fa-f]*:[0-9A-Fa-f:]*:")


def for_onlookers(status: NodeStatus, *, api: str, console: str) -> NodeStatus:
    """`status` as it is told to other machines, for which the API and the console are at these addresses."""
    targets = {model.engine.socket: f"engine of {model.name}" for model in status.models if model.engine is not None}
    targets |= {backend.url: f"backend {number}" for number, backend in enumerate(status.backends, 1)}
    return NodeStatus(
        name=status.name,
        version=status.version,
        snapshot=status.snapshot,
        pid=0,
        uptime_seconds=status.uptime_seconds,
        api=api,
        console=console,
        stopping=status.stopping,
        engine=_engine(status.engine),
        models=[_model(model, targets) for model in status.models],
        backends=[_backend(backend, targets) for backend in status.backends],
        load=[_load(load, targets) for load in status.load],
        splits=[_split(split) for split in status.splits],
        mesh=None if status.mesh is None else _mesh(status.mesh),
        mesh_reason=_why(status.mesh_reason),
        sharing=None if status.sharing is None else _sharing(status.sharing),
        machine=status.machine,
        lent=None if status.lent is None else _lent(status.lent),
        read_only=True,
    )


def _why(reason: str) -> str:
    return WITHHELD if reason else ""


def _planned(reason: str) -> str:
    """What the planner says, unless it quotes somebody who names a place."""
    return WITHHELD if _PLACE.search(reason) else reason


def _progress(progress: ProgressStatus | None) -> ProgressStatus | None:
    return None if progress is None else ProgressStatus(stage=progress.stage, fraction=progress.fraction, detail="")


def _engine(engine: EngineStatus) -> EngineStatus:
    return EngineStatus(
        phase=engine.phase,
        version=engine.version,
        progress=_progress(engine.progress),
        reason=_why(engine.reason),
        advice="",
    )


def _model(model: ModelStatus, targets: Mapping[str, str]) -> ModelStatus:
    return ModelStatus(
        name=model.name,
        purpose=model.purpose,
        phase=model.phase,
        progress=_progress(model.progress),
        file=None if model.file is None else _file(model.file),
        engine=None if model.engine is None else _server(model.engine, targets),
        restarts=model.restarts,
        reason=_why(model.reason),
        advice="",
        input_modalities=model.input_modalities,
    )


def _file(file: FileStatus) -> FileStatus:
    return FileStatus(
        path="",
        size=file.size,
        architecture=file.architecture,
        quantization=file.quantization,
        context_length=file.context_length,
        digest="",
    )


def _server(server: ServerStatus, targets: Mapping[str, str]) -> ServerStatus:
    guessing = server.speculation
    return ServerStatus(
        pid=0,
        socket=targets[server.socket],
        slots=server.slots,
        context_length=server.context_length,
        memory=server.memory,
        fit=server.fit,
        serving_seconds=server.serving_seconds,
        speculation=SpeculationStatus(
            kind=guessing.kind,
            draft=guessing.draft,
            drafted=guessing.drafted,
            accepted=guessing.accepted,
            acceptance=guessing.acceptance,
            reason="",
        ),
    )


def _backend(backend: BackendStatus, targets: Mapping[str, str]) -> BackendStatus:
    return BackendStatus(
        url=targets[backend.url], healthy=backend.healthy, models=backend.models, reason=_why(backend.reason)
    )


def _load(load: LoadStatus, targets: Mapping[str, str]) -> LoadStatus:
    return LoadStatus(
        # A peer is told by its id; of engines and backends that have just gone, nothing is known any more.
        target=load.target if load.kind == "peer" else targets.get(load.target, load.kind),
        active=load.active,
        waiting=load.waiting,
        slots=load.slots,
        kind=load.kind,
        model=load.model,
        tokens_per_second=load.tokens_per_second,
    )


def _split(split: SplitStatus) -> SplitStatus:
    return SplitStatus(
        model=split.model,
        session="",
        generation=split.generation,
        committed=split.committed,
        reason=_planned(split.reason),
        forecast=split.forecast,
        measured=split.measured,
        considered=split.considered,
        shares=[_share(share) for share in split.shares],
    )


def _share(share: WorkerShareStatus) -> WorkerShareStatus:
    return WorkerShareStatus(
        node=share.node,
        name=share.name,
        first=share.first,
        layers=share.layers,
        memory=share.memory,
        phase=share.phase,
        detail="",
        rtt=share.rtt,
        via=share.via,
        sent=share.sent,
        received=share.received,
        rate=share.rate,
    )


def _lent(lent: WorkerLeaseStatus) -> WorkerLeaseStatus:
    return WorkerLeaseStatus(
        model=lent.model,
        host=lent.host,
        session="",
        generation=lent.generation,
        phase=lent.phase,
        detail="",
        first=lent.first,
        layers=lent.layers,
        memory=lent.memory,
    )


def _mesh(mesh: MeshStatus) -> MeshStatus:
    return MeshStatus(
        node=mesh.node,
        mesh="",
        role=mesh.role,
        phase=mesh.phase,
        reason=_why(mesh.reason),
        incarnation=mesh.incarnation,
        addresses=[],
        wants=mesh.wants,
        clients=mesh.clients,
        steps=[],
        peers=[_peer(peer) for peer in mesh.peers],
        memory=mesh.memory,
        on_disk=mesh.on_disk,
        aliases=mesh.aliases,
    )


def _peer(peer: PeerInfo) -> PeerInfo:
    return PeerInfo(
        id=peer.id,
        name=peer.name,
        software=peer.software,
        status=peer.status,
        since_seconds=peer.since_seconds,
        reason="",
        linked=peer.linked,
        rtt=peer.rtt,
        via=peer.via,
        addresses=[],
        models=peer.models,
        wants=peer.wants,
        memory=peer.memory,
        active=peer.active,
        waiting=peer.waiting,
        serves=peer.serves,
        on_disk=peer.on_disk,
        aliases=peer.aliases,
    )


def _sharing(sharing: SharingStatus) -> SharingStatus:
    return SharingStatus(
        shares=sharing.shares,
        limit=sharing.limit,
        given=sharing.given,
        giving=sharing.giving,
        taking=sharing.taking,
        banned=[BannedStatus(peer=banned.peer, name=banned.name, reason=WITHHELD) for banned in sharing.banned],
    )
