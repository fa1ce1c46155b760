"""The node's status as pydantic models: the contract with `mesh-llm status`, the console page and scripts.

Times are seconds, sizes bytes, fractions 0 to 1, ids hexadecimal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from meshllm.core.memory.devices import MachineMemory, offer
from meshllm.core.memory.speculation import DraftCounts, DraftSource, Speculation
from meshllm.core.records import NodeId
from meshllm.core.routing.routes import TargetKind
from meshllm.core.serving import next_step, unloading
from meshllm.core.serving.demand_outlook import DemandOutlook
from meshllm.core.snapshot import (
    BackendState,
    EnginePhase,
    EngineState,
    ModelFacts,
    ModelPhase,
    ModelState,
    Purpose,
    ServerFacts,
    ServerPhase,
    Snapshot,
)
from meshllm.util.progress import Progress
from meshllm.web.console import split_status
from meshllm.web.console.mesh_status import MeshStatus, mesh_status
from meshllm.web.console.split_status import LeaseTrafficReader, SplitStatus, WorkerLeaseStatus
from meshllm.web.console.status_model import Modality, StatusModel, TransportKind, input_modalities


class ProgressStatus(StatusModel):
    """Progress of a long operation. `fraction` is null if unknown."""

    stage: str
    fraction: float | None
    detail: str


class EngineStatus(StatusModel):
    """The engine (llama.cpp, built on this machine)."""

    phase: EnginePhase
    version: str
    progress: ProgressStatus | None
    reason: str
    advice: str


class SpeculationStatus(StatusModel):
    """Speculative decoding of a model. `draft_model` is empty unless `kind` is draft; `reason` says why no better kind
    is used. Draft tokens are counted since the node started; `acceptance` is null before the first."""

    kind: DraftSource
    draft_model: str
    draft_tokens: int
    accepted_tokens: int
    acceptance: float | None
    reason: str


class ServerStatus(StatusModel):
    """The engine process of a model. `socket` is its Unix socket, `memory` are the bytes that it may come to with its
    caches full (planned), `memory_used` those that it takes now (null: unknown; RAM, and of GPUs what NVIDIA's driver
    tells), `memory_parts` are those of the planned ones that are not weights, context or buffers. `placement_text`
    describes which layers are in which memory. `tools`: whether the chat template renders definitions of tools;
    `calls_tools`: whether the model called one when it was tested, or its owner says so (null: not tested yet)."""

    pid: int
    socket: str
    slots: int
    context_length: int
    memory: int
    memory_used: int | None = None
    memory_parts: dict[str, int] = Field(default_factory=dict)
    placement_text: str
    serving_seconds: float
    speculation: SpeculationStatus
    tools: bool = True
    calls_tools: bool | None = None


class DeviceStatus(StatusModel):
    """An accelerator. `shared`: it uses the computer's main memory; `used`: models may be placed on it."""

    name: str
    description: str
    backend: str
    memory_total: int
    memory_free: int
    shared: bool
    used: bool


class MachineStatus(StatusModel):
    """Memory of this machine. `memory_limited`: by a cgroup; `offered`: bytes that models may take now; `cap`: the
    limit set with --max-vram, null if there is none; `devices` is null until the engine has listed them."""

    memory_total: int
    memory_available: int
    memory_limited: bool
    offered: int
    cap: int | None
    devices: list[DeviceStatus] | None


class SandboxStatus(StatusModel):
    """How engine processes run. `caged`: files and network are confined; `layers`: what the system enforces;
    `problems`: what it does not; `disabled`: by --no-sandbox."""

    caged: bool
    disabled: bool
    layers: str
    problems: list[str]


class FileStatus(StatusModel):
    """The model's file."""

    path: str
    size: int
    architecture: str
    quantization: str
    context_length: int
    digest: str


class ModelStatus(StatusModel):
    """A model that this node serves or is about to serve. `purpose` and `input_modalities` are null until the file has
    been read. `loaded`: it is in memory and answers; `idle_seconds`: since its last request ended, null while it
    processes one; `unload_seconds`: until it is unloaded if no request comes (--idle-unload), null: it is not.
    `warning`: what its users must know (it has no chat template), or empty."""

    name: str
    purpose: Purpose | None
    phase: ModelPhase
    progress: ProgressStatus | None
    file: FileStatus | None
    engine: ServerStatus | None
    restarts: int
    reason: str
    advice: str
    input_modalities: list[Modality] | None = None
    loaded: bool = False
    idle_seconds: float | None = None
    unload_seconds: float | None = None
    warning: str = ""


class BackendStatus(StatusModel):
    """An OpenAI-compatible server in the pool (`--backend`)."""

    url: str
    healthy: bool
    models: list[str]
    reason: str


class LoadStatus(StatusModel):
    """Active and waiting requests of a target. `target` is the model's name for an engine, the URL for a backend, the
    node id for a peer; `model` is empty for a backend. `tokens_per_second` is the speed of the last answer."""

    target: str
    active: int
    waiting: int
    slots: int
    kind: TargetKind
    model: str = ""
    tokens_per_second: float | None = None


class TransferStatus(StatusModel):
    """A transfer of model files to or from a peer (`peer`: its node id). `bytes` so far, `rate` in bytes/s. `what` is
    the file for an upload, the model for a download. `transport` is null before the first byte."""

    peer: str
    name: str
    what: str
    bytes: int
    rate: int
    transport: TransportKind | None


class BannedStatus(StatusModel):
    """A peer from which this node downloads nothing until it restarts, because of invalid data."""

    peer: str
    name: str
    reason: str


class CheckStatus(StatusModel):
    """A model file that is hashed before it is offered to other nodes."""

    file: str
    percent: int


class SharingStatus(StatusModel):
    """Model files exchanged with the mesh. `upload_limit` in bytes/s, null if unlimited."""

    upload_enabled: bool
    upload_limit: int | None
    uploaded_bytes: int
    uploads: list[TransferStatus]
    downloads: list[TransferStatus]
    banned: list[BannedStatus]
    checks: list[CheckStatus]


class StartStatus(StatusModel):
    """How the owner started this node, as shell texts that run as they stand. `program` runs mesh-llm here, `command`
    starts this node again, without invites; `elsewhere` runs mesh-llm on a machine that was set up in the same way."""

    program: str
    command: str
    elsewhere: str


class DroppedStatus(StatusModel):
    """A model that the owner dropped here: for so many seconds the mesh's request does not bring it back."""

    model: str
    seconds: float


class NodeStatus(StatusModel):
    """The status of this node. `mesh` and `sharing` are null if the node runs without a mesh; `mesh_reason` says why.
    `notices`: what the owner should know or do.
    `splits` are the splits that this node hosts, `worker_lease` is its part in the split of another host. `lan_urls`
    are URLs of this console for other machines. `start` is null for callers that are not the owner. `read_only`:
    redacted: the caller is not the owner."""

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
    notices: tuple[str, ...] = ()
    sharing: SharingStatus | None = None
    machine: MachineStatus | None = None
    sandbox: SandboxStatus | None = None
    worker_lease: WorkerLeaseStatus | None = None
    lan_urls: tuple[str, ...] = ()
    start: StartStatus | None = None
    read_only: bool = False
    dropped: list[DroppedStatus] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TargetLoad:
    """Load of one gateway target. `address` is the engine's socket, the backend's URL or the peer's node id."""

    kind: TargetKind
    address: str
    active: int
    waiting: int
    slots: int
    model: str = ""
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusInputs:
    """Everything a status is made of. `started` and the snapshot's times are on the same monotonic clock.

    `transports` maps peers to the transport of their requests ("lane", "quic" or empty), `drafts` maps models to counts
    of draft tokens, `traffic` returns the bytes that the tunnels of a lease have carried, `outlook` is what is to come
    for the mesh's demand.
    """

    snapshot: Snapshot
    name: str
    version: str
    pid: int
    api: str
    console: str
    started: float
    loads: Sequence[TargetLoad] = ()
    transports: Mapping[NodeId, str] = field(default_factory=dict)
    mesh_reason: str = ""
    notices: Sequence[str] = ()
    sharing: SharingStatus | None = None
    machine: MachineMemory | None = None
    drafts: Mapping[str, DraftCounts] = field(default_factory=dict)
    traffic: LeaseTrafficReader = lambda lease: {}
    sandbox: SandboxStatus | None = None
    lan_urls: Sequence[str] = ()
    start: StartStatus | None = None
    outlook: DemandOutlook | None = None


def node_status(inputs: StatusInputs, now: float) -> NodeStatus:
    """The status at `now` (seconds, the clock of `inputs.started`)."""
    snapshot, mesh = inputs.snapshot, inputs.snapshot.mesh
    models = [_model(snapshot, model, inputs.drafts.get(model.name, DraftCounts()), now) for model in snapshot.models]
    return NodeStatus(
        name=inputs.name,
        version=inputs.version,
        snapshot=snapshot.version,
        pid=inputs.pid,
        uptime_seconds=round(now - inputs.started, 3),
        api=inputs.api,
        console=inputs.console,
        stopping=snapshot.stopping,
        engine=_engine(snapshot.engine),
        models=models,
        backends=[_backend(backend) for backend in snapshot.backends],
        load=_loads(snapshot, inputs.loads),
        mesh=None if mesh is None else mesh_status(mesh, inputs.transports, snapshot.wants, inputs.outlook, now),
        mesh_reason=inputs.mesh_reason,
        notices=tuple(inputs.notices),
        sharing=inputs.sharing,
        machine=None if inputs.machine is None else machine_status(inputs.machine),
        sandbox=inputs.sandbox,
        splits=split_status.splits(snapshot, inputs.traffic),
        worker_lease=split_status.worker_lease(snapshot),
        lan_urls=tuple(inputs.lan_urls),
        start=inputs.start,
        dropped=[DroppedStatus(model=model, seconds=round(max(0.0, until - now))) for model, until in snapshot.dropped],
    )


def machine_status(machine: MachineMemory) -> MachineStatus:
    """Memory and devices of `machine`."""
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


def _progress(progress: Progress | None) -> ProgressStatus | None:
    if progress is None:
        return None
    return ProgressStatus(stage=progress.stage, fraction=progress.fraction, detail=progress.detail)


def _engine(engine: EngineState) -> EngineStatus:
    return EngineStatus(
        phase=engine.phase,
        version=engine.version,
        progress=_progress(engine.progress),
        reason=engine.reason,
        advice=engine.advice,
    )


def _model(snapshot: Snapshot, model: ModelState, drafts: DraftCounts, now: float) -> ModelStatus:
    facts = model.facts
    unload_at = unloading.idle_deadline(model, snapshot.idle_unload)
    serving_seconds = 0.0 if model.serving_since is None else round(now - model.serving_since, 3)
    return ModelStatus(
        name=model.name,
        purpose=None if facts is None else facts.purpose,
        phase=next_step.phase(snapshot.engine, model),
        progress=_progress(model.progress),
        file=None if facts is None else _file(facts),
        engine=None
        if model.server_facts is None
        else _server(model.server_facts, model.memory_used, serving_seconds, drafts),
        restarts=model.restarts,
        reason=model.reason,
        advice=model.advice,
        input_modalities=None if facts is None else input_modalities(facts.vision),
        loaded=model.server is ServerPhase.SERVING and model.server_facts is not None,
        idle_seconds=None if model.idle_since is None else round(max(0.0, now - model.idle_since), 1),
        unload_seconds=None if unload_at is None else round(max(0.0, unload_at - now), 1),
        warning="" if facts is None else facts.warning,
    )


def _file(facts: ModelFacts) -> FileStatus:
    return FileStatus(
        path=facts.path,
        size=facts.size,
        architecture=facts.architecture,
        quantization=facts.quantization,
        context_length=facts.context_length,
        digest=facts.digest,
    )


def _server(server: ServerFacts, used: int, serving_seconds: float, drafts: DraftCounts) -> ServerStatus:
    return ServerStatus(
        pid=server.pid,
        socket=server.endpoint,
        slots=server.slots,
        context_length=server.context_length,
        memory=server.memory,
        memory_used=used or None,
        memory_parts=dict(server.memory_parts),
        placement_text=server.placement_text,
        serving_seconds=serving_seconds,
        speculation=_speculation(server.speculation, drafts),
        tools=server.template.tools,
        calls_tools=server.calls_tools,
    )


def _speculation(speculation: Speculation, drafts: DraftCounts) -> SpeculationStatus:
    acceptance = drafts.acceptance
    return SpeculationStatus(
        kind=speculation.source,
        draft_model=speculation.draft,
        draft_tokens=drafts.drafted,
        accepted_tokens=drafts.accepted,
        acceptance=None if acceptance is None else round(acceptance, 4),
        reason=speculation.reason,
    )


def _backend(backend: BackendState) -> BackendStatus:
    return BackendStatus(url=backend.url, healthy=backend.healthy, models=list(backend.models), reason=backend.reason)


def _loads(snapshot: Snapshot, loads: Sequence[TargetLoad]) -> list[LoadStatus]:
    """Loads with public targets: an engine's socket path is replaced by its model. Stopped engines are left out."""
    engines = {model.server_facts.endpoint: model.name for model in snapshot.models if model.server_facts is not None}
    found = []
    for load in loads:
        engine = load.kind is TargetKind.ENGINE
        target = engines.get(load.address, "") if engine else load.address
        if not target:
            continue
        found.append(
            LoadStatus(
                target=target,
                active=load.active,
                waiting=load.waiting,
                slots=load.slots,
                kind=load.kind,
                model=target if engine else load.model,
                tokens_per_second=load.tokens_per_second,
            )
        )
    return found
