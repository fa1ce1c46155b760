"""The models that this node serves: the engine, their files, their engine processes, one step after the other.

Events of an engine process of an older generation are ignored. `next_step` decides what to do for each model;
`SplitCoordinator` advances the leases of models that need other nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.observation import SHOWN_CHANGE
from meshllm.core.records import ModelLoad
from meshllm.core.serving import file_states, next_step, unloading
from meshllm.core.serving.next_step import ServingAction
from meshllm.core.serving.phases import ENGINE_TRANSITIONS, FILE_TRANSITIONS, SERVER_TRANSITIONS
from meshllm.core.snapshot import EnginePhase, EngineState, FilePhase, ModelOrigin, ModelState, ServerPhase
from meshllm.core.split.coordinator import SplitCoordinator
from meshllm.core.split.host import SplitState
from meshllm.core.transitions import move
from meshllm.util.backoff import backoff
from meshllm.util.progress import Progress

# An engine that cannot be built is tried again after these: a compiler or disk space may have been added since.
ENGINE_RETRY_BASE_SECONDS = 5.0
ENGINE_RETRY_CAP_SECONDS = 600.0
# A model that waits for memory is measured again when this part of the free memory changed, but not more often than
# every so many seconds: measuring runs the engine for a second.
MEASURE_AGAIN_PART = 1 / 16
MEASURE_AGAIN_SECONDS = 60.0
# A node in no mesh cannot split a model.
NO_MESH = SplitState("it is too large for this node, which is in no mesh", refused=True)
MORE_NODES = "Add a node with --join, or choose a smaller model, a smaller quantization or a smaller --ctx-size."
OTHER_NODES = "Add a node with --join, or leave out --split."
NO_ROOM = "Drop another model ('mesh-llm drop'), or choose a smaller one, a smaller quantization or --ctx-size."
DROPPED = "its owner dropped it on this node"
LOAD_AGAIN = "Load it with 'mesh-llm load', or use another model."
WAITING_FOR_MEMORY = Progress("waiting for memory")
# Models for the mesh's demand that are listed as served here although they are unloaded; the last ones.
MAX_UNLOADED = 8


class LocalModels:
    """The engine and the models by name. `splitting` is None for a node that is in no mesh, or a client.

    `expected`: models that this node may have to serve later.
    """

    def __init__(self, splitting: SplitCoordinator | None, idle_unload: float | None = None) -> None:
        """`idle_unload`: a model that has been idle for so many seconds is unloaded (None: never)."""
        self.expected: tuple[str, ...] = ()
        self.idle_unload = idle_unload
        self._generations: dict[str, int] = {}  # of models that were dropped
        self._draining: set[str] = set()  # models whose process is stopped when its answers have ended
        self.speed = 0  # bytes of weights that this node reads in a second; 0: not known
        self.engine = EngineState()
        self.models: dict[str, ModelState] = {}
        self._splitting = splitting
        self._stopping = False
        self._measured_at: dict[str, float] = {}
        self._ended_at = float("-inf")  # when an engine process ended last
        # The models that wait for room, the first one first.
        self._in_line: dict[str, None] = {}

    def handle(self, event: e.Event, now: float) -> bool:
        """Take in an event about the engine, a model's file or its process. Returns False for any other event."""
        match event:
            case e.ModelWanted():
                self.want(event.model, event.origin, force_split=event.split, unknown=event.unknown)
            case e.LoadWanted():
                self.load(event.model)
            case e.ModelRequested():
                return self._requested(event.model)
            case e.EngineProgress():
                self._engine_progress(event, now)
            case e.EngineReady():
                self._engine_ready(event, now)
            case e.EngineFailed():
                self._engine_failed(event, now)
            case e.FileProgress() | e.FileReady() | e.FileFailed():
                self._file_event(event, now)
            case e.ModelMeasured():
                self._model_measured(event, now)
            case e.MeasureFailed():
                self._measure_failed(event, now)
            case e.ServerProgress():
                self._server_progress(event, now)
            case e.ServerReady():
                self._server_ready(event, now)
            case e.ToolCallsTested():
                self._tool_calls_tested(event)
            case e.ServerGone():
                self._server_gone(event, now)
            case e.DecodeMeasured():
                self._decode_measured(event, now)
            case _:
                return False
        return True

    def want(
        self,
        name: str,
        origin: ModelOrigin = ModelOrigin.STARTED,
        *,
        force_split: bool = False,
        unknown: bool = False,
    ) -> None:
        """Serve that model here; `force_split`: as a split, even if it fits on this node; `unknown`: only the mesh can
        know what the name means."""
        if not self._stopping and name not in self.models:
            generation = self._generations.pop(name, 0)
            self.models[name] = ModelState(
                name, force_split=force_split, origin=origin, generation=generation, unknown=unknown
            )

    def rename(self, name: str, meant: str) -> list[c.Command]:
        """The model that was wanted as `name`, unknown here, is the one that the mesh has as `meant`."""
        model = self.models[name]
        forget = self._forget(name)
        self.want(meant, model.origin, force_split=model.force_split)
        return [forget, c.TakeFromMesh(meant, name)]

    def load(self, name: str) -> None:
        """The owner wants that model served here: try now, whatever failed before."""
        model = self.models.get(name)
        if self._stopping or model is None:
            self.want(name, ModelOrigin.LOADED)
            return
        others_word = model.origin in (ModelOrigin.BESIDE, ModelOrigin.MESH)
        origin = ModelOrigin.LOADED if others_word else model.origin
        model = replace(model, wanted=True, dropped=False, unloaded=False, origin=origin, reason="", advice="")
        if model.server is ServerPhase.NONE and not model.measuring:
            file = FilePhase.ABSENT if model.file is FilePhase.FAILED else model.file
            held = model.split is not None and model.split.lease is not None
            model = replace(model, file=file, failures=0, not_before=None, measured=model.measured if held else None)
            model = model if held else replace(model, split=None)
        self.models[name] = model

    def drop(self, name: str, reason: str = DROPPED, advice: str = LOAD_AGAIN) -> bool:
        """The owner wants that model no longer served here, or for another `reason` it is not: stop it when its answers
        have ended, then remove it. False if there is no such model."""
        model = self.models.get(name)
        if model is None:
            return False
        if model.split is not None and model.server is ServerPhase.NONE and self._splitting is not None:
            self._splitting.release(name, reason)
        self.models[name] = replace(model, wanted=False, dropped=True, reason=reason, advice=advice)
        return True

    def _requested(self, name: str) -> bool:
        """A caller requests that model: load it again if it is unloaded."""
        model = self.models.get(name)
        if self._stopping or model is None or not model.wanted or not model.unloaded:
            return False
        del self.models[name]  # the last requested one is the last: see `_forget_unloaded`
        self.models[name] = replace(model, unloaded=False, measured=None, split=None)
        return True

    def loads_changed(self, loads: Iterable[ModelLoad], now: float) -> None:
        """The requests that the engines here process now."""
        for load in loads:
            model = self.models.get(load.name)
            if model is None or model.server is not ServerPhase.SERVING:
                continue
            if load.active or load.waiting:
                if model.idle_since is not None:
                    self.models[load.name] = replace(model, idle_since=None)
            elif model.idle_since is None:
                self.models[load.name] = replace(model, idle_since=now)

    def _unload(self, name: str) -> None:
        """Free that model's memory; the next request loads it again."""
        model = self.models[name]
        self.models[name] = replace(model, unloaded=True, last_run=model.server_facts, idle_since=None)

    def memory_observed(self, free: int, now: float) -> None:
        """`free` bytes are free for models now: measure again the models that wait for memory, if it changed."""
        for name, model in self.models.items():
            measured, split = model.measured, model.split
            if measured is None or model.server is not ServerPhase.NONE or measured.fits_locally:
                continue
            if split is None or not split.refused or split.disk_paging:
                continue  # a lease is being prepared, or the start is due
            changed = abs(free - measured.free_bytes) > MEASURE_AGAIN_PART * measured.free_bytes
            if changed and now - self._measured_at.get(name, now) >= MEASURE_AGAIN_SECONDS:
                self.models[name] = replace(model, measured=None, split=None)

    def memory_used(self, used: Mapping[str, int]) -> None:
        """Bytes that the engine process of each model takes now. Small changes are not shown."""
        for name, model in self.models.items():
            now = used.get(name, 0)
            if abs(now - model.memory_used) > SHOWN_CHANGE * model.memory_used:
                self.models[name] = replace(model, memory_used=now)

    def stop(self) -> None:
        """Stop all models."""
        self._stopping = True
        for name, model in self.models.items():
            self.models[name] = replace(model, wanted=False)

    @property
    def at_rest(self) -> bool:
        """Whether no process runs."""
        return all(model.server is ServerPhase.NONE for model in self.models.values())

    @property
    def waiting(self) -> bool:
        """Whether a model is requested and not served, for whatever reason that may pass."""
        return any(next_step.waits(model) for model in self.models.values())

    def next_deadline(self, now: float) -> float | None:
        """When to decide again on the models that wait: at the next retry if there is one, else soon.

        Nothing depends on an event: it may never come, or may have come already.
        """
        retry = self.engine.not_before if self.engine.phase is EnginePhase.FAILED else None
        times = []
        for model in self.models.values():
            if next_step.waits(model):
                known = [at for at in (model.not_before, retry) if at is not None and at > now]
                times.append(min(known, default=now + next_step.RECHECK_SECONDS))
            elif (at := unloading.idle_deadline(model, self.idle_unload)) is not None:
                times.append(at)
        return min(times, default=None)

    # -- deciding

    def decide(self, now: float) -> list[c.Command]:
        """The commands for all models, at `now`."""
        todo: list[c.Command] = []
        for name, model in self.models.items():
            at = unloading.idle_deadline(model, self.idle_unload)
            if at is not None and at <= now:
                self._unload(name)
        if self._stopping:
            draining = [self.models[name] for name in self._draining]
            todo += [c.StopServer(model.name, model.generation) for model in draining]
            self._draining.clear()
        # Models that need room come first: they choose which others are unloaded.
        for name in sorted(self.models, key=lambda name: self.models[name].server is not ServerPhase.NONE):
            # A model can need two things at once (its file and the engine): ask until there is no further command.
            while (command := self._step(name, now)) is not None:
                todo.append(command)
        for name, model in list(self.models.items()):
            if model.dropped and model.server is ServerPhase.NONE:
                todo.append(self._forget(name))
        return [*todo, *self._forget_unloaded()]

    def _forget(self, name: str) -> c.Command:
        self._in_line.pop(name, None)
        self._generations[name] = self.models.pop(name).generation
        return c.ForgetModel(name)

    def _forget_unloaded(self) -> list[c.Command]:
        """Remove the models for the mesh's demand that were unloaded long ago: a request brings them back."""
        idle = [name for name, model in self.models.items() if is_unloaded(model)]
        return [self._forget(name) for name in idle[:-MAX_UNLOADED]]

    def _step(self, name: str, now: float) -> c.Command | None:
        model = self.models[name]
        if model.not_before is not None and model.not_before <= now:
            model = self.models[name] = replace(model, not_before=None)
        action = next_step.next_step(self.engine, model, now).action
        if action is ServingAction.ADVANCE_LEASE:
            if self._makes_room(model, now):
                return None
            model = self._advance_lease(self.models[name], now)
            action = next_step.next_step(self.engine, model, now).action
        match action:
            case ServingAction.FETCH:
                file = move(FILE_TRANSITIONS, model.file, FilePhase.FETCHING)
                # The cause of the last failure stays until bytes arrive: callers are refused with it.
                self.models[name] = replace(model, file=file, progress=None)
                return c.FetchModel(name)
            case ServingAction.PREPARE_ENGINE:
                phase = move(ENGINE_TRANSITIONS, self.engine.phase, EnginePhase.PREPARING)
                # The cause of the last failure stays until the engine is ready: callers are refused with it.
                self.engine = replace(self.engine, phase=phase, progress=None, not_before=None)
                return c.PrepareEngine()
            case ServingAction.MEASURE if self._is_behind(name):
                return None
            case ServingAction.MEASURE:
                self.models[name] = replace(model, measuring=True)
                self._measured_at[name] = now
                return c.MeasureModel(name, model.force_split, self._beside(name))
            case ServingAction.START:
                return self._start(model)
            case ServingAction.STOP:
                server = move(SERVER_TRANSITIONS, model.server, ServerPhase.STOPPING)
                # Callers are no longer sent to an engine process that is unloaded.
                facts = None if model.unloaded else model.server_facts
                self.models[name] = replace(
                    model, server=server, serving_since=None, server_facts=facts, idle_since=None
                )
                drain = model.dropped or model.unloaded
                if drain:
                    self._draining.add(name)
                return c.StopServer(name, model.generation, drain=drain)
            case _:
                return None

    def _start(self, model: ModelState) -> c.Command:
        self._in_line.pop(model.name, None)
        generation = model.generation + 1
        self.models[model.name] = replace(
            model,
            server=move(SERVER_TRANSITIONS, model.server, ServerPhase.STARTING),
            generation=generation,
            progress=None,
            server_facts=None,
        )
        split = model.split
        if split is None or split.lease is None:
            return c.StartServer(model.name, generation)
        names = tuple([member.name for member in split.members])
        sharers = self._splitting.sharers(split.lease) if self._splitting is not None else 1
        return c.StartServer(model.name, generation, split.lease, split.size, names, sharers)

    def _beside(self, name: str) -> tuple[str, ...]:
        """The further models for which memory is kept when `name` is measured: they are not loaded yet."""
        coming = [
            other.name
            for other in self.models.values()
            if other.name != name
            and other.origin is not ModelOrigin.MESH  # these take turns
            and next_step.waits(other)
            and other.server is ServerPhase.NONE
            and not (other.measured is not None and other.measured.fits_locally)  # has its plan
            and not other.force_split
            and not (other.split is not None and other.split.refused)
        ]
        return tuple(dict.fromkeys([*coming, *(other for other in self.expected if other not in self.models)]))

    def _others(self, name: str) -> list[ModelState]:
        return [other for other in self.models.values() if other.name != name]

    def _makes_room(self, model: ModelState, now: float) -> bool:
        """Whether room is being made for a model that does not fit: another one is unloaded, or will be."""
        held = model.split is not None and model.split.lease is not None
        if held or model.force_split or model.measured is None:
            return False
        room = unloading.room_for(model, self._others(model.name), now)
        if room.unload:
            self._unload(room.unload)
        if room.unload or room.waits:
            self._in_line.setdefault(model.name)
            self.models[model.name] = replace(model, progress=WAITING_FOR_MEMORY, reason="", advice="", split=None)
            return True
        return False

    def _is_behind(self, name: str) -> bool:
        """Whether another model gets the free memory first: it has waited for longer, and room is being made for it, or
        it is measured again as a process has ended. Else models that are requested later could pass it for ever."""
        for other in self._in_line:
            if other == name:
                return False
            model = self.models.get(other)
            if model is None or not next_step.waits(model) or model.server is not ServerPhase.NONE:
                continue
            if any(it.server is ServerPhase.STOPPING for it in self.models.values()):
                return True
            if model.measuring or (model.measured is None and model.not_before is None):
                return model.file is FilePhase.READY
        return False

    def _advance_lease(self, model: ModelState, now: float) -> ModelState:
        assert model.measured is not None
        others = self._others(model.name)
        served = any(other.server is not ServerPhase.NONE for other in others)
        if model.origin is ModelOrigin.BESIDE or (served and self._splitting is None):
            reason = unloading.no_room_text(model, others)
            refusal = SplitState(reason, refused=True)
            found = replace(model, split=refusal, reason=f"{reason}.", advice=NO_ROOM, last_run=None)
            self.models[model.name] = found
            return found
        if self._splitting is not None:
            split = self._splitting.advance_lease(model, self.speed, now)
        else:
            split = replace(NO_MESH, disk_paging=model.measured.disk_paging and not model.force_split)
        if served and split.disk_paging:
            split = replace(split, disk_paging=False)  # it would take the memory of the others
        refused = split.refused and not split.disk_paging
        advice = OTHER_NODES if model.force_split and model.measured.fits_locally else MORE_NODES
        model = replace(
            model,
            split=split,
            last_run=None if refused else model.last_run,
            reason=f"{split.reason}." if refused else "",
            advice=advice if refused else "",
        )
        self.models[model.name] = model
        return model

    def members_lost(self, now: float) -> list[c.Command]:
        """Workers were lost: stop the engine processes that used them."""
        todo: list[c.Command] = []
        for name, model in self.models.items():
            if self._splitting is None or model.split is None or not model.split.committed:
                continue
            split = self._splitting.state(name)
            if split is not None and split.committed:
                continue
            running = model.server in (ServerPhase.STARTING, ServerPhase.SERVING)
            # A lost worker is no failure of the engine: no backoff.
            self.models[name] = replace(
                model,
                server=move(SERVER_TRANSITIONS, model.server, ServerPhase.STOPPING) if running else model.server,
                server_facts=None,
                split=split,
                failures=0,
                not_before=None,
                reason=split.reason if split is not None else "",
            )
            if running or name in self._draining:
                todo.append(c.StopServer(name, model.generation, at_once=True))
        return todo

    def members_leaving(self) -> list[c.Command]:
        """Workers are about to stop: end the engine processes that use them when their answers have ended. New requests
        wait for the next plan, which is made without these workers."""
        todo: list[c.Command] = []
        for name, model in self.models.items():
            split = self._splitting.state(name) if self._splitting is not None else None
            if split is None or not split.leaving or model.server not in (ServerPhase.STARTING, ServerPhase.SERVING):
                continue
            self.models[name] = replace(
                model,
                server=move(SERVER_TRANSITIONS, model.server, ServerPhase.STOPPING),
                server_facts=None,
                serving_since=None,
                idle_since=None,
                split=split,
                failures=0,
                not_before=None,
                reason=f"worker {', '.join(split.leaving)} stops",
            )
            self._draining.add(name)
            todo.append(c.StopServer(name, model.generation, drain=True))
        return todo

    # -- the engine and the files

    def _engine_progress(self, event: e.EngineProgress, now: float) -> None:
        if self.engine.phase is EnginePhase.PREPARING:
            self.engine = replace(self.engine, progress=event.progress)

    def _engine_ready(self, event: e.EngineReady, now: float) -> None:
        if (self.engine.phase, EnginePhase.READY) in ENGINE_TRANSITIONS:
            self.engine = EngineState(EnginePhase.READY, version=event.version)

    def _engine_failed(self, event: e.EngineFailed, now: float) -> None:
        if (self.engine.phase, EnginePhase.FAILED) not in ENGINE_TRANSITIONS:
            return
        failures = self.engine.failures
        delay = backoff(failures, base=ENGINE_RETRY_BASE_SECONDS, cap=ENGINE_RETRY_CAP_SECONDS)
        self.engine = EngineState(
            EnginePhase.FAILED, reason=event.reason, advice=event.advice, failures=failures + 1, not_before=now + delay
        )

    def _file_event(self, event: e.FileProgress | e.FileReady | e.FileFailed, now: float) -> None:
        model = self.models.get(event.model)
        if model is None:
            return
        match event:
            case e.FileProgress():
                model = file_states.progressed(model, event)
            case e.FileReady():
                model = file_states.ready(model, event)
            case e.FileFailed():
                model = file_states.failed(model, event, now)
        self.models[event.model] = model

    # -- memory

    def _model_measured(self, event: e.ModelMeasured, now: float) -> None:
        model = self.models.get(event.model)
        if model is not None and model.measuring:
            stale = not event.measured.fits_locally and self._measured_at.get(event.model, now) < self._ended_at
            # What ended meanwhile was counted: measure again.
            measured = None if stale else event.measured
            self.models[event.model] = replace(model, measuring=False, measured=measured, progress=None)

    def _measure_failed(self, event: e.MeasureFailed, now: float) -> None:
        model = self.models.get(event.model)
        if model is not None and model.measuring:
            failures = max(model.failures + 1, next_step.CRASH_LOOP_FAILURES if event.hopeless else 0)
            self.models[event.model] = replace(
                model,
                measuring=False,
                failures=failures,
                not_before=now + next_step.restart_delay(failures),
                reason=event.reason,
                advice=event.advice,
            )

    # -- the engine processes

    def _decode_measured(self, event: e.DecodeMeasured, now: float) -> None:
        model = self.models.get(event.model)
        facts = model.server_facts if model is not None else None
        if model is None or facts is None or facts.endpoint != event.endpoint or self._splitting is None:
            return  # of an engine process that has ended
        split = self._splitting.on_decode(model, event, self.speed, now)
        if split is not None and split.committed:
            self.models[event.model] = replace(model, split=split)

    def _room_changed(self, ended: str, now: float) -> None:
        """An engine process ended: measure the models again that did not fit beside it."""
        self._ended_at = now
        for name, model in self.models.items():
            held = model.split is not None and model.split.lease is not None
            short = model.measured is not None and not model.measured.fits_locally
            if name != ended and model.server is ServerPhase.NONE and short and not held:
                self.models[name] = replace(model, measured=None, split=None, progress=None)

    def _current(self, name: str, generation: int) -> ModelState | None:
        model = self.models.get(name)
        return model if model is not None and model.generation == generation else None

    def _server_progress(self, event: e.ServerProgress, now: float) -> None:
        model = self._current(event.model, event.generation)
        if model is not None and model.server is ServerPhase.STARTING:
            self.models[event.model] = replace(model, progress=event.progress)

    def _server_ready(self, event: e.ServerReady, now: float) -> None:
        model = self._current(event.model, event.generation)
        if model is not None and model.server is ServerPhase.STARTING:
            self.models[event.model] = replace(
                model,
                server=move(SERVER_TRANSITIONS, model.server, ServerPhase.SERVING),
                server_facts=event.facts,
                serving_since=now,
                idle_since=now,
                last_run=None,
                progress=None,
                reason="",
                advice="",
            )

    def _tool_calls_tested(self, event: e.ToolCallsTested) -> None:
        model = self._current(event.model, event.generation)
        if model is not None and model.server_facts is not None:
            facts = replace(model.server_facts, calls_tools=event.calls_tools)
            self.models[event.model] = replace(model, server_facts=facts)

    def _server_gone(self, event: e.ServerGone, now: float) -> None:
        model = self._current(event.model, event.generation)
        if model is None or model.server is ServerPhase.NONE:
            return
        server = move(SERVER_TRANSITIONS, model.server, ServerPhase.NONE)
        gone = replace(model, server=server, server_facts=None, serving_since=None, idle_since=None, progress=None)
        self._draining.discard(model.name)
        self._room_changed(model.name, now)
        if model.split is not None and self._splitting is not None:
            # The workers' state belongs to the closed connection: the next start takes a new lease. Measure again: the
            # free memory may have changed.
            self._splitting.release(model.name, "the engine process of the host ended")
            gone = replace(gone, split=None, measured=None)
        if not model.wanted:
            self.models[event.model] = gone
            return
        if model.unloaded or (model.last_run is not None and model.server is ServerPhase.STOPPING):
            self.models[event.model] = replace(gone, measured=None)  # its memory is planned again
            return
        gone = replace(gone, last_run=None)
        if model.server is ServerPhase.STOPPING:
            self.models[event.model] = replace(gone, restarts=model.restarts + 1)
            return
        stable = model.serving_since is not None and now - model.serving_since >= next_step.STABLE_SECONDS
        failures = 1 if stable else model.failures + 1
        if event.hopeless:
            # Perhaps the free memory has changed since the model was measured. Other nodes may help at the next start.
            failures, gone = max(failures, next_step.CRASH_LOOP_FAILURES), replace(gone, measured=None)
        self.models[event.model] = replace(
            gone,
            failures=failures,
            restarts=model.restarts + 1,
            last_failure=event.reason,
            not_before=now + next_step.restart_delay(failures),
            reason=event.reason,
            advice=event.advice,
        )


def is_unloaded(model: ModelState) -> bool:
    """Whether the model was loaded for the mesh's demand, and takes no memory now."""
    return model.origin is ModelOrigin.MESH and model.unloaded and model.server is ServerPhase.NONE
