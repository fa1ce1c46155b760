"""What this node serves itself: the engine, the models, and one step after the other towards serving them.

Law: events of an engine process that is no more (an older generation) change nothing. What is to be done is asked of
`serving.next_step`, again and again until there is nothing new; what a model needs others for, of `splitting`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.serving import next_step
from meshllm.core.serving.next_step import ServingAction
from meshllm.core.snapshot import EnginePhase, EngineState, FilePhase, ModelState, ServerPhase
from meshllm.core.split.coordinator import SplitCoordinator
from meshllm.core.split.host import SplitState
from meshllm.util.backoff import backoff

# A file that could not be fetched for no lasting reason is tried again: doubling from the first to the second.
FETCH_RETRY_BASE_SECONDS = 5.0
FETCH_RETRY_CAP_SECONDS = 300.0
# What a node in no mesh can do about a model that is too large for it.
ALONE = SplitState("it is too large for this node, which is in no mesh", refused=True)
MORE_NODES = "Add a node with --join, or choose a smaller model, a smaller quantization or a smaller --ctx-size."
OTHER_NODES = "Add a node with --join, or leave out --split."


class LocalModels:
    """The engine and the models by name. `splitting` is None for a node that is in no mesh, or a client."""

    def __init__(self, splitting: SplitCoordinator | None) -> None:
        self.speed = 0  # bytes of weights that this node reads in a second; 0: not known
        self.engine = EngineState()
        self.models: dict[str, ModelState] = {}
        self._splitting = splitting
        self._stopping = False
        self.handlers: dict[type[e.Event], Callable[[Any, float], None]] = {
            e.ModelWanted: lambda event, now: self.want(event.model, apart=event.split),
            e.EngineProgress: self._engine_progress,
            e.EngineReady: self._engine_ready,
            e.EngineFailed: self._engine_failed,
            e.FileProgress: self._file_progress,
            e.FileReady: self._file_ready,
            e.FileFailed: self._file_failed,
            e.ModelMeasured: self._model_measured,
            e.MeasureFailed: self._measure_failed,
            e.ServerProgress: self._server_progress,
            e.ServerReady: self._server_ready,
            e.ServerGone: self._server_gone,
        }

    def want(self, name: str, *, apart: bool = False) -> None:
        """Somebody asked for that model here; `apart`: split, even if it fits."""
        if not self._stopping and name not in self.models:
            self.models[name] = ModelState(name, force_split=apart)

    def stop(self) -> None:
        """End everything."""
        self._stopping = True
        for name, model in self.models.items():
            self.models[name] = replace(model, wanted=False)

    @property
    def at_rest(self) -> bool:
        """Whether no process runs."""
        return all(model.server is ServerPhase.NONE for model in self.models.values())

    def next_deadline(self) -> float | None:
        """When a start that was put off is due."""
        times = [m.not_before for m in self.models.values() if m.wanted and m.server is ServerPhase.NONE]
        return min((time for time in times if time is not None), default=None)

    # -- deciding

    def decide(self, now: float) -> list[c.Command]:
        """What is to be done now."""
        todo: list[c.Command] = []
        for name in list(self.models):
            # A model can need two things at once (its file and the engine): ask until there is nothing new to do.
            while (command := self._step(name, now)) is not None:
                todo.append(command)
        return todo

    def _step(self, name: str, now: float) -> c.Command | None:
        model = self.models[name]
        if model.not_before is not None and model.not_before <= now:
            model = self.models[name] = replace(model, not_before=None)
        action = next_step.next_step(self.engine, model, now).action
        if action is ServingAction.AGREE:
            model = self._agree(model, now)
            action = next_step.next_step(self.engine, model, now).action
        match action:
            case ServingAction.FETCH:
                self.models[name] = replace(model, file=FilePhase.FETCHING, progress=None, reason="", advice="")
                return c.FetchModel(name)
            case ServingAction.PREPARE_ENGINE:
                self.engine = EngineState(EnginePhase.PREPARING)
                return c.PrepareEngine()
            case ServingAction.MEASURE:
                self.models[name] = replace(model, measuring=True)
                return c.MeasureModel(name, model.force_split)
            case ServingAction.START:
                return self._start(model)
            case ServingAction.STOP:
                self.models[name] = replace(model, server=ServerPhase.STOPPING, serving_since=None)
                return c.StopServer(name, model.generation)
            case _:
                return None

    def _start(self, model: ModelState) -> c.Command:
        generation = model.generation + 1
        self.models[model.name] = replace(
            model, server=ServerPhase.STARTING, generation=generation, progress=None, server_facts=None
        )
        split = model.split
        if split is None or split.lease is None:
            return c.StartServer(model.name, generation)
        return c.StartServer(model.name, generation, split.lease, split.size)

    def _agree(self, model: ModelState, now: float) -> ModelState:
        assert model.measured is not None
        if self._splitting is not None:
            split = self._splitting.advance_lease(model, self.speed, now)
        else:
            split = replace(ALONE, disk_paging=model.measured.disk_paging and not model.force_split)
        refused = split.refused and not split.disk_paging
        model = replace(
            model,
            split=split,
            reason=f"{split.reason}." if refused else "",
            advice=(OTHER_NODES if model.force_split else MORE_NODES) if refused else "",
        )
        self.models[model.name] = model
        return model

    def members_lost(self, now: float) -> list[c.Command]:
        """Some of those that carry layers are gone: what was served with them is withdrawn, and begun anew."""
        todo: list[c.Command] = []
        for name, model in self.models.items():
            if self._splitting is None or model.split is None or not model.split.committed:
                continue
            split = self._splitting.state(name)
            if split is not None and split.committed:
                continue
            running = model.server in (ServerPhase.STARTING, ServerPhase.SERVING)
            # It is known why it dies: that is no failure of the engine's.
            self.models[name] = replace(
                model,
                server=ServerPhase.STOPPING if running else model.server,
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
        self.engine = EngineState(EnginePhase.READY, version=event.version)

    def _engine_failed(self, event: e.EngineFailed, now: float) -> None:
        self.engine = EngineState(EnginePhase.FAILED, reason=event.reason, advice=event.advice)

    def _file_progress(self, event: e.FileProgress, now: float) -> None:
        model = self.models.get(event.model)
        # While it is measured, a draft may be on its way.
        if model is not None and (model.file is FilePhase.FETCHING or model.measuring):
            self.models[event.model] = replace(model, progress=event.progress)

    def _file_ready(self, event: e.FileReady, now: float) -> None:
        model = self.models.get(event.model)
        if model is not None:
            self.models[event.model] = replace(
                model, file=FilePhase.READY, facts=event.facts, progress=None, failures=0, reason="", advice=""
            )

    def _file_failed(self, event: e.FileFailed, now: float) -> None:
        model = self.models.get(event.model)
        if model is None:
            return
        failures = model.failures + 1
        delay = backoff(failures - 1, base=FETCH_RETRY_BASE_SECONDS, cap=FETCH_RETRY_CAP_SECONDS)
        self.models[event.model] = replace(
            model,
            file=FilePhase.FAILED if event.final else FilePhase.ABSENT,
            not_before=None if event.final else now + delay,
            failures=failures,
            progress=None,
            reason=event.reason,
            advice=event.advice,
        )

    # -- what it takes

    def _model_measured(self, event: e.ModelMeasured, now: float) -> None:
        model = self.models.get(event.model)
        if model is not None and model.measuring:
            self.models[event.model] = replace(model, measuring=False, measured=event.measured, progress=None)

    def _measure_failed(self, event: e.MeasureFailed, now: float) -> None:
        model = self.models.get(event.model)
        if model is not None and model.measuring:
            failures = model.failures + 1
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
        gone = replace(model, server=ServerPhase.NONE, server_facts=None, serving_since=None, progress=None)
        if model.split is not None and self._splitting is not None:
            # What the workers hold belongs to the connection that is gone: the next start is agreed on anew, and
            # measured anew, because the memory may not be what it was.
            self._splitting.release(model.name, "the engine process of the host ended")
            gone = replace(gone, split=None, measured=None)
        if not model.wanted:
            self.models[event.model] = gone
            return
        if model.server is ServerPhase.STOPPING:
            self.models[event.model] = replace(gone, restarts=model.restarts + 1)
            return
        stable = model.serving_since is not None and now - model.serving_since >= next_step.STABLE_SECONDS
        failures = 1 if stable else model.failures + 1
        if event.hopeless:
            # The memory is not what it was when the model was measured: perhaps others can help by then.
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
