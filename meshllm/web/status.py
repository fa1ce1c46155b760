"""What the status endpoints say, as pydantic models: the contract with `mesh-llm status`, the console and scripts.

Times are seconds, sizes bytes, fractions 0 to 1. Fields are only ever added.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from meshllm.core import serving
from meshllm.core.types import BackendState, ModelState, Progress, Snapshot


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProgressStatus(_Model):
    """How far something long has come; `fraction` is null where nobody knows."""

    stage: str
    fraction: float | None
    detail: str


class EngineStatus(_Model):
    """The engine (llama.cpp, built on this machine)."""

    phase: str
    version: str
    progress: ProgressStatus | None
    reason: str
    advice: str


class ServerStatus(_Model):
    """The process that serves a model. `memory` is what the engine says it needs."""

    pid: int
    socket: str
    slots: int
    context_length: int
    memory: int
    serving_seconds: float


class FileStatus(_Model):
    """The model's file."""

    path: str
    size: int
    architecture: str
    quantization: str
    context_length: int
    digest: str


class ModelStatus(_Model):
    """A model this node serves or is about to. `purpose`: generate, embed or rerank; null until the file is there."""

    name: str
    purpose: str | None
    phase: str
    progress: ProgressStatus | None
    file: FileStatus | None
    engine: ServerStatus | None
    restarts: int
    reason: str
    advice: str


class BackendStatus(_Model):
    """An OpenAI-compatible server in the pool."""

    url: str
    healthy: bool
    models: list[str]
    reason: str


class LoadStatus(_Model):
    """Requests at work and waiting, by the model or backend that answers them."""

    target: str
    active: int
    waiting: int
    slots: int


class NodeStatus(_Model):
    """Everything about this node."""

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


def _progress(progress: Progress | None) -> ProgressStatus | None:
    if progress is None:
        return None
    return ProgressStatus(stage=progress.stage, fraction=progress.fraction, detail=progress.detail)


def _model(snapshot: Snapshot, model: ModelState, now: float) -> ModelStatus:
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
            serving_seconds=0.0 if model.serving_since is None else round(now - model.serving_since, 3),
        )
    return ModelStatus(
        name=model.name,
        purpose=None if model.facts is None else model.facts.purpose.value,
        phase=serving.phase(snapshot.engine, model).value,
        progress=_progress(model.progress),
        file=file,
        engine=server,
        restarts=model.restarts,
        reason=model.reason,
        advice=model.advice,
    )


def _backend(backend: BackendState) -> BackendStatus:
    return BackendStatus(url=backend.url, healthy=backend.healthy, models=list(backend.models), reason=backend.reason)


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
) -> NodeStatus:
    """The status at `now`; `started` is when the daemon began (seconds, the same clock)."""
    engine = snapshot.engine
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
        models=[_model(snapshot, model, now) for model in snapshot.models],
        backends=[_backend(backend) for backend in snapshot.backends],
        load=load,
    )
