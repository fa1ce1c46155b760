"""The core of a node: events in, commands out.

Law: `handle` is the only way in, and neither waits nor fails; the caller passes the time. Events that belong to an
engine process that is no more (an older generation) change nothing. Readers get `snapshot()`, a frozen value, made when
it is asked for. What is of other nodes is delegated: to `peers.Peers`, or for a client to `guest.Guest`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core import placement, serving
from meshllm.core.guest import Guest
from meshllm.core.links import Rng
from meshllm.core.peers import MeshConfig, Peers
from meshllm.core.records import (
    MAX_BACKEND_MODELS,
    MAX_ON_DISK,
    MAX_SERVED,
    MAX_WANTED,
    ModelLoad,
    NodeId,
    Role,
    ServedModel,
)
from meshllm.core.serving import Action
from meshllm.core.types import (
    BackendState,
    EnginePhase,
    EngineState,
    FilePhase,
    ModelState,
    ServerPhase,
    Snapshot,
)
from meshllm.core.views import PeerStatus

# A healthy backend is asked for its models this often; a silent one sooner at first, then ever less often.
BACKEND_PROBE_SECONDS = 10.0
BACKEND_RETRY_BASE_SECONDS = 0.5
BACKEND_RETRY_CAP_SECONDS = 15.0
# A file that could not be fetched for no lasting reason is tried again: doubling from the first to the second.
FETCH_RETRY_BASE_SECONDS = 5.0
FETCH_RETRY_CAP_SECONDS = 300.0
# A node without a model of its own looks this often what the mesh could use; the first time after the table has come
# and most of those in it have shown that they live.
PLACEMENT_SECONDS = 3.0


class Mesh:
    """One node's knowledge and its decisions."""

    def __init__(self, config: MeshConfig | None = None, rng: Rng | None = None) -> None:
        """Without `config` this node is in no mesh. With it, `rng` is needed as well."""
        self._engine = EngineState()
        self._models: dict[str, ModelState] = {}
        self._backends: dict[str, BackendState] = {}
        self._wishes: dict[str, None] = {}
        self._on_disk: tuple[str, ...] = ()
        self._memory = 0
        self._loads: tuple[ModelLoad, ...] = ()
        self._taken: str | None = None  # served because the mesh needed it
        self._placement_at: float | None = None
        self._due: float | None = None  # when a model or a backend is to be looked at again
        self._peers: Peers | Guest | None = None
        if config is not None:
            if rng is None:
                raise ValueError("a node of a mesh needs randomness")
            self._peers = Peers(config, rng) if config.role is Role.NODE else Guest(config, rng)
        self._stopping = False
        self._finished = False
        self._snapshot = Snapshot()
        self._dirty = self._peers is not None
        self._handlers: dict[type[e.Event], Callable[[Any, float], None]] = {
            e.ModelWanted: self._model_wanted,
            e.ModelWished: self._model_wished,
            e.DiskScanned: self._disk_scanned,
            e.LoadsChanged: self._loads_changed,
            e.BackendAdded: self._backend_added,
            e.StopWanted: self._stop_wanted,
            e.EngineProgress: self._engine_progress,
            e.EngineReady: self._engine_ready,
            e.EngineFailed: self._engine_failed,
            e.FileProgress: self._file_progress,
            e.FileReady: self._file_ready,
            e.FileFailed: self._file_failed,
            e.ServerProgress: self._server_progress,
            e.ServerReady: self._server_ready,
            e.ServerGone: self._server_gone,
            e.BackendAnswered: self._backend_answered,
            e.BackendSilent: self._backend_silent,
        }

    # -- what the daemon calls

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in `event` at `now` (seconds, monotonic); return what is to be done about it, in order."""
        todo: list[c.Command] = []
        handler = self._handlers.get(type(event))
        # Most of what happens is between nodes and over in microseconds: only what concerns this one is looked at here.
        if handler is not None or (self._due is not None and self._due <= now):
            if handler is not None:
                handler(event, now)
            todo = self._decide(now)
            self._dirty = True
        if self._peers is not None:
            # What this node says of itself changes by what happens to it; the leaving is a record of its own.
            if handler is not None and not isinstance(event, e.TimePassed | e.StopWanted):
                todo += self._peers.local(now, **self._said())
            todo += self._peers.handle(event, now)
            todo += self._take(now)
        if self._stopping and not self._finished and self._at_rest():
            self._finished = True
            todo.append(c.Finish())
        return todo

    def next_deadline(self) -> float | None:
        """When to send `TimePassed` if nothing else happens before (seconds, same clock), or None."""
        times = [self._due]
        if self._peers is not None:
            times.append(self._peers.next_deadline())
            if not self._stopping:
                times.append(self._placement_at)
        return min((time for time in times if time is not None), default=None)

    def snapshot(self) -> Snapshot:
        """What is known now. The same object until something changes."""
        if self._dirty or (self._peers is not None and self._peers.dirty):
            self._dirty = False
            self._publish()
        return self._snapshot

    def peer_status(self, node: NodeId) -> PeerStatus | None:
        """Where a peer is in its life, None if it is not known: what the snapshot says, without making one."""
        return self._peers.status(node) if self._peers is not None else None

    # -- deciding

    def _decide(self, now: float) -> list[c.Command]:
        todo = self._next_steps(now)
        times = [m.not_before for m in self._models.values() if m.wanted and m.server is ServerPhase.NONE]
        if not self._stopping:
            times += [b.next_probe for b in self._backends.values() if not b.probing]
        self._due = min((time for time in times if time is not None), default=None)
        return todo

    def _next_steps(self, now: float) -> list[c.Command]:
        todo: list[c.Command] = []
        for name in list(self._models):
            # A model can need two things at once (its file and the engine): ask until there is nothing new to do.
            while (command := self._step(name, now)) is not None:
                todo.append(command)
        if self._stopping:
            return todo
        for url, backend in self._backends.items():
            if not backend.probing and backend.next_probe is not None and backend.next_probe <= now:
                self._backends[url] = replace(backend, probing=True)
                todo.append(c.ProbeBackend(url))
        return todo

    def _step(self, name: str, now: float) -> c.Command | None:
        model = self._models[name]
        if model.not_before is not None and model.not_before <= now:
            model = self._models[name] = replace(model, not_before=None)
        match serving.next_step(self._engine, model, now).action:
            case Action.FETCH:
                self._models[name] = replace(model, file=FilePhase.FETCHING, progress=None, reason="", advice="")
                return c.FetchModel(name)
            case Action.PREPARE_ENGINE:
                self._engine = EngineState(EnginePhase.PREPARING)
                return c.PrepareEngine()
            case Action.START:
                generation = model.generation + 1
                self._models[name] = replace(
                    model, server=ServerPhase.STARTING, generation=generation, progress=None, server_facts=None
                )
                return c.StartServer(name, generation)
            case Action.STOP:
                self._models[name] = replace(model, server=ServerPhase.STOPPING, serving_since=None)
                return c.StopServer(name, model.generation)
            case _:
                return None

    def _publish(self) -> None:
        new = Snapshot(
            self._snapshot.version,
            self._engine,
            tuple(self._models.values()),
            tuple(self._backends.values()),
            self._stopping,
            self._peers.view() if self._peers is not None else None,
            tuple(self._wishes),
        )
        if new != self._snapshot:
            self._snapshot = replace(new, version=new.version + 1)

    def _at_rest(self) -> bool:
        return all(model.server is ServerPhase.NONE for model in self._models.values())

    # -- the mesh

    def _said(self) -> dict[str, object]:
        """What this node says of itself; the signer cuts what is beyond the bounds of a record."""
        served = [
            ServedModel(m.name, m.facts.purpose, m.server_facts.context_length, m.server_facts.slots, m.facts.size)
            for m in self._models.values()
            if m.wanted and m.server is ServerPhase.SERVING and m.server_facts is not None and m.facts is not None
        ][:MAX_SERVED]
        names = {model.name for model in served}
        pooled = [name for b in self._backends.values() if b.healthy for name in b.models if name not in names]
        served += [ServedModel(name) for name in list(dict.fromkeys(pooled))[:MAX_BACKEND_MODELS]]
        wants = [name for name, model in self._models.items() if model.wanted and name != self._taken]
        return {
            "serves": tuple(served),
            "wants": tuple(dict.fromkeys([*wants, *self._wishes]))[:MAX_WANTED],
            "on_disk": self._on_disk[:MAX_ON_DISK],
            "memory": self._memory,
            "loads": self._loads,
        }

    def _take(self, now: float) -> list[c.Command]:
        """A node without a model of its own takes one that the mesh wants, and keeps it."""
        peers = self._peers
        if not isinstance(peers, Peers) or self._models or self._backends or self._wishes or self._stopping:
            self._placement_at = None
            return []
        if not self._on_disk or not peers.joined:
            return []
        if self._placement_at is None:
            self._placement_at = now + PLACEMENT_SECONDS
        if now < self._placement_at:
            return []
        self._placement_at = now + PLACEMENT_SECONDS
        self._taken = placement.choose(peers.record, peers.alive())
        if self._taken is None:
            return []
        self._placement_at = None
        self._models[self._taken] = ModelState(self._taken)
        self._dirty = True
        return self._decide(now)

    def _model_wished(self, event: e.ModelWished, now: float) -> None:
        if not self._stopping:
            self._wishes[event.model] = None

    def _disk_scanned(self, event: e.DiskScanned, now: float) -> None:
        self._on_disk, self._memory = event.models, event.memory

    def _loads_changed(self, event: e.LoadsChanged, now: float) -> None:
        self._loads = event.loads

    # -- what people want

    def _model_wanted(self, event: e.ModelWanted, now: float) -> None:
        if not self._stopping and event.model not in self._models:
            self._models[event.model] = ModelState(event.model)

    def _backend_added(self, event: e.BackendAdded, now: float) -> None:
        if not self._stopping and event.url not in self._backends:
            self._backends[event.url] = BackendState(event.url, next_probe=now)

    def _stop_wanted(self, event: e.StopWanted, now: float) -> None:
        self._stopping = True
        for name, model in self._models.items():
            self._models[name] = replace(model, wanted=False)

    # -- the engine and the files

    def _engine_progress(self, event: e.EngineProgress, now: float) -> None:
        if self._engine.phase is EnginePhase.PREPARING:
            self._engine = replace(self._engine, progress=event.progress)

    def _engine_ready(self, event: e.EngineReady, now: float) -> None:
        self._engine = EngineState(EnginePhase.READY, version=event.version)

    def _engine_failed(self, event: e.EngineFailed, now: float) -> None:
        self._engine = EngineState(EnginePhase.FAILED, reason=event.reason, advice=event.advice)

    def _file_progress(self, event: e.FileProgress, now: float) -> None:
        model = self._models.get(event.model)
        if model is not None and model.file is FilePhase.FETCHING:
            self._models[event.model] = replace(model, progress=event.progress)

    def _file_ready(self, event: e.FileReady, now: float) -> None:
        model = self._models.get(event.model)
        if model is not None:
            self._models[event.model] = replace(
                model, file=FilePhase.READY, facts=event.facts, progress=None, failures=0, reason="", advice=""
            )

    def _file_failed(self, event: e.FileFailed, now: float) -> None:
        model = self._models.get(event.model)
        if model is None:
            return
        failures = model.failures + 1
        delay = min(FETCH_RETRY_CAP_SECONDS, FETCH_RETRY_BASE_SECONDS * 2.0 ** (failures - 1))
        self._models[event.model] = replace(
            model,
            file=FilePhase.FAILED if event.final else FilePhase.ABSENT,
            not_before=None if event.final else now + delay,
            failures=failures,
            progress=None,
            reason=event.reason,
            advice=event.advice,
        )

    # -- the engine processes

    def _current(self, name: str, generation: int) -> ModelState | None:
        model = self._models.get(name)
        return model if model is not None and model.generation == generation else None

    def _server_progress(self, event: e.ServerProgress, now: float) -> None:
        model = self._current(event.model, event.generation)
        if model is not None and model.server is ServerPhase.STARTING:
            self._models[event.model] = replace(model, progress=event.progress)

    def _server_ready(self, event: e.ServerReady, now: float) -> None:
        model = self._current(event.model, event.generation)
        if model is not None and model.server is ServerPhase.STARTING:
            self._models[event.model] = replace(
                model,
                server=ServerPhase.SERVING,
                server_facts=event.facts,
                serving_since=now,
                progress=None,
                reason="",
                advice="",
            )

    def _server_gone(self, event: e.ServerGone, now: float) -> None:
        model = self._current(event.model, event.generation)
        if model is None or model.server is ServerPhase.NONE:
            return
        if not model.wanted:
            self._models[event.model] = replace(
                model, server=ServerPhase.NONE, server_facts=None, serving_since=None, progress=None
            )
            return
        stable = model.serving_since is not None and now - model.serving_since >= serving.STABLE_SECONDS
        failures = 1 if stable else model.failures + 1
        if event.hopeless:
            failures = max(failures, serving.CRASH_LOOP_FAILURES)
        self._models[event.model] = replace(
            model,
            server=ServerPhase.NONE,
            server_facts=None,
            serving_since=None,
            progress=None,
            failures=failures,
            restarts=model.restarts + 1,
            not_before=now + serving.restart_delay(failures),
            reason=event.reason,
            advice=event.advice,
        )

    # -- backends

    def _backend_answered(self, event: e.BackendAnswered, now: float) -> None:
        if event.url in self._backends:
            self._backends[event.url] = BackendState(
                event.url, healthy=True, models=event.models, reason="", next_probe=now + BACKEND_PROBE_SECONDS
            )

    def _backend_silent(self, event: e.BackendSilent, now: float) -> None:
        backend = self._backends.get(event.url)
        if backend is not None:
            delay = min(BACKEND_RETRY_CAP_SECONDS, BACKEND_RETRY_BASE_SECONDS * 2.0 ** min(backend.failures, 8))
            # What it had is remembered: its callers are told that it is away, not that the model is unknown.
            self._backends[event.url] = BackendState(
                event.url,
                models=backend.models,
                reason=event.reason,
                failures=backend.failures + 1,
                next_probe=now + delay,
            )
