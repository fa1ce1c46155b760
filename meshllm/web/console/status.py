"""What the status endpoints say, as pydantic models: the contract with `mesh-llm status`, the console and scripts.

Times are seconds, sizes bytes, fractions 0 to 1. Fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshllm.core.memory.devices import MachineMemory, offer
from meshllm.core.memory.speculation import DraftCounts, Speculation
from meshllm.core.records import NodeId
from meshllm.core.serving import next_step
from meshllm.core.snapshot import BackendState, ModelState, Snapshot
from meshllm.util.progress import Progress
from meshllm.web.console import split_status
from meshllm.web.console.mesh_status import MeshStatus, mesh_status
from meshllm.web.console.split_status import SplitStatus, Traffic, WorkerLeaseStatus
from meshllm.web.console.status_model import StatusModel
from meshllm.web.gateway.model_list import modalities
from meshllm.web.gateway.target import TargetQueue


class ProgressStatus(StatusModel):
    """How far something long has come; `fraction` is null where nobody knows."""

    stage: str
    fraction: float | None
    detail: str


class EngineStatus(StatusModel):
    """The engine (llama.cpp, built on this machine)."""

    phase: str
    version: str
    progress: ProgressStatus | None
    reason: str
    advice: str


class SpeculationStatus(StatusModel):
    """How the engine guesses ahead: `kind` is none, n-grams or draft (with the model called `draft`), `reason` why no
    more than that. `drafted` and `accepted` tokens since this node began; `acceptance` is null before the first."""

    kind: str
    draft: str
    drafted: int
    accepted: int
    acceptance: float | None
    reason: str


class ServerStatus(StatusModel):
    """The process that serves a model. `memory` is what the engine says it needs, `fit` where that is and what was
    given up for it, in words."""

    pid: int
    socket: str
    slots: int
    context_length: int
    memory: int
    fit: str
    serving_seconds: float
    speculation: SpeculationStatus


class DeviceStatus(StatusModel):
    """An accelerator as the engine sees it; `shared`: its memory is the computer's own; `used`: models may go there."""

    name: str
    description: str
    backend: str
    memory_total: int
    memory_free: int
    shared: bool
    used: bool


class MachineStatus(StatusModel):
    """What this machine has for models. `memory_limited`: by a cgroup; `offered`: bytes models may take now, `cap`:
    what --max-vram allows, null for all; `devices` is null until the engine has been asked."""

    memory_total: int
    memory_available: int
    memory_limited: bool
    offered: int
    cap: int | None
    devices: list[DeviceStatus] | None


class FileStatus(StatusModel):
    """The model's file."""

    path: str
    size: int
    architecture: str
    quantization: str
    context_length: int
    digest: str


class ModelStatus(StatusModel):
    """A model this node serves or is about to. `purpose`: generate, embed or rerank; `input_modalities`: "text", and
    "image" where it sees; both null until the file is there."""

    name: str
    purpose: str | None
    phase: str
    progress: ProgressStatus | None
    file: FileStatus | None
    engine: ServerStatus | None
    restarts: int
    reason: str
    advice: str
    input_modalities: list[str] | None = None


class BackendStatus(StatusModel):
    """An OpenAI-compatible server in the pool."""

    url: str
    healthy: bool
    models: list[str]
    reason: str


class LoadStatus(StatusModel):
    """Requests at work and waiting, by the model or backend that answers them.

    `kind`: engine, backend or peer; `model` is set for a peer. `tokens_per_second` is of the last answer that told it.
    """

    target: str
    active: int
    waiting: int
    slots: int
    kind: str = ""
    model: str = ""
    tokens_per_second: float | None = None


class TransferStatus(StatusModel):
    """Model files on their way to or from a peer (`peer`: its id): `bytes` so far, `rate` in bytes/s of late, by "lane"
    or "quic". `what` is the file that is given, or the model of which something is taken."""

    peer: str
    name: str
    what: str
    bytes: int
    rate: int
    via: str


class BannedStatus(StatusModel):
    """A peer from which nothing is taken any more while this node runs, and why."""

    peer: str
    name: str
    reason: str


class SharingStatus(StatusModel):
    """Model files that are exchanged with the mesh. `shares`: whether this node gives any; `limit`: bytes/s that may be
    given now, null for any number; `given`: bytes in all."""

    shares: bool
    limit: int | None
    given: int
    giving: list[TransferStatus]
    taking: list[TransferStatus]
    banned: list[BannedStatus]


class NodeStatus(StatusModel):
    """Everything about this node. `mesh` and `sharing` are null where it goes on alone, for `mesh_reason`. `splits` are
    those it hosts, `lent` is what it carries for the host of another. `elsewhere` is where other machines find this
    console; `read_only` is told to those: they get no invite, and what is its owner's alone is empty or 0."""

    name: str
    version: str
    snapshot: int
    pid: int
    uptime_seconds: float
    api: str
    console: str
    stopping: bool
    engine: EngineStatus
    models: list[ModelStatus]
    backends: list[BackendStatus]
    load: list[LoadStatus]
    splits: list[SplitStatus]
    mesh: MeshStatus | None = None
    mesh_reason: str = ""
    sharing: SharingStatus | None = None
    machine: MachineStatus | None = None
    lent: WorkerLeaseStatus | None = None
    elsewhere: tuple[str, ...] = ()
    read_only: bool = False


def _progress(progress: Progress | None) -> ProgressStatus | None:
    if progress is None:
        return None
    return ProgressStatus(stage=progress.stage, fraction=progress.fraction, detail=progress.detail)


def _speculation(speculation: Speculation, guesses: DraftCounts) -> SpeculationStatus:
    acceptance = guesses.acceptance
    return SpeculationStatus(
        kind=speculation.source.value,
        draft=speculation.draft,
        drafted=guesses.drafted,
        accepted=guesses.accepted,
        acceptance=None if acceptance is None else round(acceptance, 4),
        reason=speculation.reason,
    )


def _model(snapshot: Snapshot, model: ModelState, guesses: DraftCounts, now: float) -> ModelStatus:
    file, server = None, None
    if (facts := model.facts) is not None:
        file = FileStatus(
            path=facts.path,
            size=facts.size,
            architecture=facts.architecture,
            quantization=facts.quantization,
            context_length=facts.context_length,
            digest=facts.digest,
        )
    if (running := model.server_facts) is not None:
        server = ServerStatus(
            pid=running.pid,
            socket=running.endpoint,
            slots=running.slots,
            context_length=running.context_length,
            memory=running.memory,
            fit=running.placement_text,
            serving_seconds=0.0 if model.serving_since is None else round(now - model.serving_since, 3),
            speculation=_speculation(running.speculation, guesses),
        )
    return ModelStatus(
        name=model.name,
        purpose=None if model.facts is None else model.facts.purpose.value,
        phase=next_step.phase(snapshot.engine, model).value,
        progress=_progress(model.progress),
        file=file,
        engine=server,
        restarts=model.restarts,
        reason=model.reason,
        advice=model.advice,
        input_modalities=None if model.facts is None else modalities(model.facts.vision),
    )


def load_status(desk: TargetQueue) -> LoadStatus:
    """How busy a target is."""
    target = desk.target
    return LoadStatus(
        target=target.address,
        active=desk.active,
        waiting=desk.waiting,
        slots=desk.limit,
        kind=target.kind.value,
        model=target.model,
        tokens_per_second=desk.tokens_per_second,
    )


def _backend(backend: BackendState) -> BackendStatus:
    return BackendStatus(url=backend.url, healthy=backend.healthy, models=list(backend.models), reason=backend.reason)


def machine_status(machine: MachineMemory) -> MachineStatus:
    """What `machine` has, and what of it is used."""
    devices = [
        DeviceStatus(
            name=device.name,
            description=device.description,
            backend=device.backend,
            memory_total=device.total,
            memory_free=device.free,
            shared=device.shared,
            used=device.name in machine.used,
        )
        for device in machine.devices
    ]
    return MachineStatus(
        memory_total=machine.total,
        memory_available=machine.available,
        memory_limited=machine.limited,
        offered=offer(machine),
        cap=machine.cap,
        devices=devices if machine.known else None,
    )


def node_status(
    snapshot: Snapshot,
    load: list[LoadStatus],
    *,
    name: str,
    version: str,
    pid: int,
    api: str,
    console: str,
    started: float,
    now: float,
    vias: Mapping[NodeId, str] | None = None,
    mesh_reason: str = "",
    sharing: SharingStatus | None = None,
    machine: MachineMemory | None = None,
    guesses: Mapping[str, DraftCounts] | None = None,
    traffic: Traffic = lambda lease: {},
    elsewhere: Sequence[str] = (),
) -> NodeStatus:
    """The status at `now`; `started` is when the daemon began (seconds, the same clock), `guesses` what became of
    tokens guessed ahead, by model; `traffic` what the tunnels of a lease have carried; `elsewhere` where other machines
    find this console."""
    engine, mesh, guessed = snapshot.engine, snapshot.mesh, guesses or {}
    return NodeStatus(
        name=name,
        version=version,
        snapshot=snapshot.version,
        pid=pid,
        uptime_seconds=round(now - started, 3),
        api=api,
        console=console,
        stopping=snapshot.stopping,
        engine=EngineStatus(
            phase=engine.phase.value,
            version=engine.version,
            progress=_progress(engine.progress),
            reason=engine.reason,
            advice=engine.advice,
        ),
        models=[_model(snapshot, model, guessed.get(model.name, DraftCounts()), now) for model in snapshot.models],
        backends=[_backend(backend) for backend in snapshot.backends],
        load=load,
        mesh=None if mesh is None else mesh_status(mesh, vias or {}, snapshot.wants, now),
        mesh_reason=mesh_reason,
        sharing=sharing,
        machine=None if machine is None else machine_status(machine),
        splits=split_status.splits(snapshot, traffic, guessed),
        lent=split_status.lent(snapshot),
        elsewhere=tuple(elsewhere),
    )
