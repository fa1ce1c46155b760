"""The models that this node serves: the engine, their files, their engine processes, one step after the other.

Events of an engine process of an older generation are ignored. `next_step` decides what to do for each model;
`SplitCoordinator` advances the leases of models that need other nodes.
"""

from __future__ import annotations

from dataclasses import replace

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.serving import next_step
from meshllm.core.serving.next_step import ServingAction
from meshllm.core.serving.phases import ENGINE_TRANSITIONS, FILE_TRANSITIONS, SERVER_TRANSITIONS
from meshllm.core.snapshot import EnginePhase, EngineState, FilePhase, ModelState, ServerPhase
from meshllm.core.split.coordinator import SplitCoordinator
from meshllm.core.split.host import SplitState
from meshllm.core.transitions import move
from meshllm.util.backoff import backoff

# A download that failed for a passing reason is retried after these delays (seconds), doubling from base to cap.
FETCH_RETRY_BASE_SECONDS = 5.0
FETCH_RETRY_CAP_SECONDS = 300.0
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
RETRIED = "This node tries again by itself, at first after some seconds, later every 5 minutes."
OTHER_NODES = "Add a node with --join, or leave out --split."


class LocalModels:
    """The engine and the models by name. `splitting` is None for a node that is in no mesh, or a client."""

    def __init__(self, splitting: SplitCoordinator | None) -> None:
        self.speed = 0  # bytes of weights that this node reads in a second; 0: not known
        self.engine = EngineState()
        self.models: dict[str, ModelState] = {}
        self._splitting = splitting
        self._stopping = False
        # Generations of models that were released: a later process must not be taken for an earlier one.
        self._generations: dict[str, int] = {}
        self._measured_at: dict[str, float] = {}

    def handle(self, event: e.Event, now: float) -> bool:
        """Take in an event about the engine, a model's file or its process. Returns False for any other event."""
        match event:
            case e.ModelWanted():
                self.want(event.model, force_split=event.split)
            case e.EngineProgress():
                self._engine_progress(event, now)
            case e.EngineReady():
                self._engine_ready(event, now)
            case e.EngineFailed():
                self._engine_failed(event, now)
            case e.FileProgress():
                self._file_progress(event, now)
            case e.FileReady():
                self._file_ready(event, now)
            case e.FileFailed():
                self._file_failed(event, now)
            case e.ModelMeasured():
                self._model_measured(event, now)
            case e.MeasureFailed():
                self._measure_failed(event, now)
            case e.ServerProgress():
                self._server_progress(event, now)
            case e.ServerReady():
                self._server_ready(event, now)
            case e.ServerGone():
                self._server_gone(event, now)
            case _:
                return False
        return True

    def want(self, name: str, *, force_split: bool = False) -> None:
        """Serve that model here; `force_split`: as a split, even if it fits on this node."""
        if not self._stopping and name not in self.models:
            generation = self._generations.get(name, 0)
            self.models[name] = ModelState(name, force_split=force_split, generation=generation)

    def release(self, name: str) -> None:
        """Serve that model no longer: its process ends when it has finished its answers, then it is removed."""
        model = self.models.get(name)
        if model is None:
            return
        self._generations[name] = model.generation
        if model.server is not ServerPhase.NONE:
            self.models[name] = replace(model, wanted=False)
            return
        if self._splitting is not None and model.split is not None:
            self._splitting.release(name, "the model is not served any more")
        del self.models[name]

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
        return any(_waits(model) for model in self.models.values())

    def next_deadline(self, now: float) -> float | None:
        """When to decide again on the models that wait: at the next retry if there is one, else soon.

        Nothing depends on an event: it may never come, or may have come already.
        """
        retry = self.engine.not_before if self.engine.phase is EnginePhase.FAILED else None
        times = []
        for model in self.models.values():
            if _waits(model):
                known = [at for at in (model.not_before, retry) if at is not None and at > now]
                times.append(min(known, default=now + next_step.RECHECK_SECONDS))
        return min(times, default=None)

    # -- deciding

    def decide(self, now: float) -> list[c.Command]:
        """The commands for all models, at `now`."""
        todo: list[c.Command] = []
        for name in list(self.models):
            # A model can need two things at once (its file and the engine): ask until there is no further command.
            while (command := self._step(name, now)) is not None:
                todo.append(command)
        return todo

    def _step(self, name: str, now: float) -> c.Command | None:
        model = self.models[name]
        if model.not_before is not None and model.not_before <= now:
            model = self.models[name] = replace(model, not_before=None)
        action = next_step.next_step(self.engine, model, now).action
        if action is ServingAction.ADVANCE_LEASE:
            model = self._advance_lease(model, now)
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
            case ServingAction.MEASURE:
                self.models[name] = replace(model, measuring=True)
                self._measured_at[name] = now
                return c.MeasureModel(name, model.force_split)
            case ServingAction.START:
                return self._start(model)
            case ServingAction.STOP:
                server = move(SERVER_TRANSITIONS, model.server, ServerPhase.STOPPING)
                self.models[name] = replace(model, server=server, serving_since=None)
                return c.StopServer(name, model.generation)
            case _:
                return None

    def _start(self, model: ModelState) -> c.Command:
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
        return c.StartServer(model.name, generation, split.lease, split.size, names)

    def _advance_lease(self, model: ModelState, now: float) -> ModelState:
        assert model.measured is not None
        if self._splitting is not None:
            split = self._splitting.advance_lease(model, self.speed, now)
        else:
            split = replace(NO_MESH, disk_paging=model.measured.disk_paging and not model.force_split)
        refused = split.refused and not split.disk_paging
        advice = OTHER_NODES if model.force_split and model.measured.fits_locally else MORE_NODES
        model = replace(
            model,
            split=split,
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
            if running:
                todo.append(c.StopServer(name, model.generation, at_once=True))
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

    def _file_progress(self, event: e.FileProgress, now: float) -> None:
        model = self.models.get(event.model)
        # A draft model is downloaded while the model is measured.
        if model is not None and (model.file is FilePhase.FETCHING or model.measuring):
            if model.progress is not None and event.progress.done > model.progress.done:
                model = replace(model, reason="", advice="")
            self.models[event.model] = replace(model, progress=event.progress)

    def _file_ready(self, event: e.FileReady, now: float) -> None:
        model = self.models.get(event.model)
        if model is not None and (model.file, FilePhase.READY) in FILE_TRANSITIONS:
            self.models[event.model] = replace(
                model, file=FilePhase.READY, facts=event.facts, progress=None, failures=0, reason="", advice=""
            )

    def _file_failed(self, event: e.FileFailed, now: float) -> None:
        model = self.models.get(event.model)
        phase = FilePhase.FAILED if event.final else FilePhase.ABSENT
        if model is None or (model.file, phase) not in FILE_TRANSITIONS:
            return
        failures = model.failures + 1
        delay = backoff(failures - 1, base=FETCH_RETRY_BASE_SECONDS, cap=FETCH_RETRY_CAP_SECONDS)
        self.models[event.model] = replace(
            model,
            file=phase,
            not_before=None if event.final else now + delay,
            failures=failures,
            progress=None,
            reason=event.reason,
            advice=event.advice if event.final else f"{event.advice} {RETRIED}".lstrip(),
        )

    # -- memory

    def _model_measured(self, event: e.ModelMeasured, now: float) -> None:
        model = self.models.get(event.model)
        if model is not None and model.measuring:
            self.models[event.model] = replace(model, measuring=False, measured=event.measured, progress=None)

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
                progress=None,
                reason="",
                advice="",
            )

    def _server_gone(self, event: e.ServerGone, now: float) -> None:
        model = self._current(event.model, event.generation)
        if model is None or model.server is ServerPhase.NONE:
            return
        server = move(SERVER_TRANSITIONS, model.server, ServerPhase.NONE)
        gone = replace(model, server=server, server_facts=None, serving_since=None, progress=None)
        if model.split is not None and self._splitting is not None:
            # The workers' state belongs to the closed connection: the next start takes a new lease. Measure again: the
            # free memory may have changed.
            self._splitting.release(model.name, "the engine process of the host ended")
            gone = replace(gone, split=None, measured=None)
        if not model.wanted:
            self.models[event.model] = gone
            if not self._stopping and model.name in self._generations:
                self.release(model.name)
            return
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


def _waits(model: ModelState) -> bool:
    return model.wanted and model.server is not ServerPhase.SERVING and model.file is not FilePhase.FAILED
