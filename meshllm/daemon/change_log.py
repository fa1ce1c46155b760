"""Logs what changes between two snapshots: models, engine, backends, peers, joining, splits and worker leases."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from meshllm.core.membership.views import MeshView, PeerStatus, PeerView
from meshllm.core.records import NodeId, short
from meshllm.core.serving import next_step
from meshllm.core.snapshot import EnginePhase, FilePhase, ModelPhase, ModelState, ServerPhase, Snapshot
from meshllm.core.split.host import SplitState
from meshllm.core.split.worker import WorkerLeaseState

log = logging.getLogger(__name__)

# In a large mesh many peers change at once: more than these are counted in one line.
MAX_PEER_LINES = 32
_PEER_EVENTS = {
    PeerStatus.ALIVE: "peer joined",
    PeerStatus.SUSPECT: "peer does not answer",
    PeerStatus.DEAD: "peer died",
    PeerStatus.LEFT: "peer left",
}


class ChangeLog:
    """Remembers the last snapshot and logs the differences of the next one at INFO."""

    def __init__(self) -> None:
        self._last = Snapshot()

    def publish(self, snapshot: Snapshot) -> None:
        """Log what is new in `snapshot`."""
        last, self._last = self._last, snapshot
        if snapshot.engine is not last.engine:
            _log_engine(last, snapshot)
        if snapshot.models is not last.models or snapshot.engine.phase is not last.engine.phase:
            known = {model.name: model for model in last.models}
            for model in snapshot.models:
                if (before := known.get(model.name)) is not model:
                    _log_model(before, model, last, snapshot)
        if snapshot.backends is not last.backends:
            _log_backends(last, snapshot)
        if snapshot.mesh is not None and snapshot.mesh is not last.mesh:
            _log_mesh(last.mesh, snapshot.mesh)
        if snapshot.worker_lease is not last.worker_lease:
            _log_worker_lease(last.worker_lease, snapshot.worker_lease)


def _info(text: str, **fields: object) -> None:
    log.info(text, extra={"fields": {name: value for name, value in fields.items() if value not in ("", None)}})


def _log_engine(last: Snapshot, snapshot: Snapshot) -> None:
    engine = snapshot.engine
    if engine.phase is not last.engine.phase or engine.reason != last.engine.reason:
        version = engine.version if engine.phase is EnginePhase.READY else ""
        _info(f"engine {engine.phase.value}", version=version, reason=engine.reason, advice=engine.advice)


def _log_model(before: ModelState | None, model: ModelState, last: Snapshot, snapshot: Snapshot) -> None:
    old = before or ModelState(model.name)
    if model.file is not old.file and model.file is not FilePhase.ABSENT:
        size = model.facts.size if model.facts is not None else None
        text = {
            FilePhase.FETCHING: "model file: download or check started",
            FilePhase.READY: "model file: ready",
            FilePhase.FAILED: "model file: failed",
        }[model.file]
        _info(text, model=model.name, bytes=size, reason=model.reason)
    if model.server is not old.server or model.generation != old.generation:
        _log_server(old, model)
    phase = next_step.phase(snapshot.engine, model)
    before_phase = next_step.phase(last.engine, before) if before is not None else None
    if phase is not before_phase or (phase is ModelPhase.FAILED and model.reason != old.reason):
        _info(f"model {phase.value}", model=model.name, reason=model.reason, advice=model.advice)
    if model.split is not old.split and model.split is not None:
        _log_split(model.name, old.split, model.split)


def _log_server(old: ModelState, model: ModelState) -> None:
    name, generation = model.name, model.generation
    match model.server:
        case ServerPhase.STARTING:
            _info("engine process starts", model=name, generation=generation, restarts=model.restarts)
        case ServerPhase.SERVING if model.server_facts is not None:
            facts = model.server_facts
            _info(
                "engine process ready",
                model=name,
                generation=generation,
                pid=facts.pid,
                slots=facts.slots,
                context=facts.context_length,
            )
        case ServerPhase.STOPPING:
            _info("engine process is stopped", model=name, generation=generation)
        case ServerPhase.NONE if old.server is not ServerPhase.NONE:
            _info("engine process ended", model=name, generation=old.generation, reason=model.reason)


def _log_split(name: str, old: SplitState | None, split: SplitState) -> None:
    lease, before = split.lease, old.lease if old is not None else None
    if lease is not None and lease is not before:
        workers = ",".join(short(node) for node in lease.members)
        _info("lease proposed", model=name, session=lease.session.hex(), generation=lease.generation, workers=workers)
    if lease is not None and split.committed and not (old is not None and old.committed and before is lease):
        _info("lease committed", model=name, session=lease.session.hex(), generation=lease.generation)
    if split.measured.text and _cause(split) != (_cause(old) if old is not None else ""):
        forecast = round(split.plan.seconds, 6) if split.plan is not None else None
        measured = round(split.measured.seconds, 6)
        _info(f"split {split.measured.text}", model=name, forecast_seconds=forecast, measured_seconds=measured)
    if before is not None and lease is None:
        _info(
            "lease released",
            model=name,
            session=before.session.hex(),
            generation=before.generation,
            reason=split.reason,
        )


def _cause(split: SplitState) -> str:
    """Why the forecast missed, without the figure, which changes with each answer."""
    return split.measured.text.partition(": ")[2]


def _log_worker_lease(old: WorkerLeaseState | None, new: WorkerLeaseState | None) -> None:
    if new is None:
        if old is not None:
            lease = old.lease
            _info("worker lease released", model=lease.model, host=short(lease.host), session=lease.session.hex())
        return
    if old is None or old.phase is not new.phase or old.lease is not new.lease:
        lease = new.lease
        _info(
            f"worker lease {new.phase.value}",
            model=lease.model,
            host=short(lease.host),
            session=lease.session.hex(),
            generation=lease.generation,
            detail=new.detail,
        )


def _log_backends(last: Snapshot, snapshot: Snapshot) -> None:
    known = {backend.url: backend for backend in last.backends}
    for backend in snapshot.backends:
        before = known.get(backend.url)
        if backend.healthy and (before is None or not before.healthy or before.models != backend.models):
            _info("backend answers", url=backend.url, models=",".join(backend.models))
        elif not backend.healthy and before is not None and before.healthy:
            _info("backend does not answer", url=backend.url, reason=backend.reason)


def _log_mesh(last: MeshView | None, mesh: MeshView) -> None:
    if last is None or mesh.phase is not last.phase:
        _info(f"mesh {mesh.phase.value}", mesh=mesh.mesh.hex(), node=short(mesh.node), reason=mesh.reason)
    if last is not None and mesh.peers is last.peers:
        return
    known: Mapping[NodeId, PeerView] = {peer.node: peer for peer in last.peers} if last is not None else {}
    changed = [
        peer
        for peer in mesh.peers
        if (before := known.get(peer.node)) is not peer
        and peer.status in _PEER_EVENTS
        and (before is None or before.status is not peer.status)
        and not (before is None and peer.status in (PeerStatus.DEAD, PeerStatus.LEFT))
    ]
    for peer in changed[:MAX_PEER_LINES]:
        _info(_PEER_EVENTS[peer.status], peer=short(peer.node), name=peer.record.name, reason=peer.reason)
    if len(changed) > MAX_PEER_LINES:
        _info("more peers changed", count=len(changed) - MAX_PEER_LINES)
