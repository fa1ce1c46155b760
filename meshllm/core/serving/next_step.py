"""From what is wanted and what is, to the one next thing to do for a model.

`next_step` is a pure function of the desired and the observed state; it settles: applying its step and feeding back
what the step leads to ends in `Nothing`. When nothing is to be done, nothing is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.snapshot import EnginePhase, EngineState, FilePhase, ModelPhase, ModelState, ServerPhase
from meshllm.util.backoff import backoff

# A server that has answered for this long was stable: its next death starts the count of failures anew.
STABLE_SECONDS = 60.0
# Deaths in a row after which the model is called failed (its callers get an error at once instead of waiting).
# Starting again goes on, slowly: what was wrong (no memory, say) may have passed.
CRASH_LOOP_FAILURES = 5
BACKOFF_BASE_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 30.0
CRASH_LOOP_RETRY_SECONDS = 120.0


class ServingAction(Enum):
    """The kinds of next step."""

    NOTHING = "nothing"
    WAIT = "wait"
    PREPARE_ENGINE = "prepare engine"
    FETCH = "fetch"
    MEASURE = "measure"
    AGREE = "agree"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class ServingStep:
    """One next step; `until` is when to ask again, for WAIT (None: when something happens)."""

    action: ServingAction
    until: float | None = None


def next_step(engine: EngineState, model: ModelState, now: float) -> ServingStep:
    """What to do next for `model`, at `now` (seconds, monotonic). Deterministic."""
    if not model.wanted:
        return (
            ServingStep(ServingAction.STOP)
            if model.server in (ServerPhase.STARTING, ServerPhase.SERVING)
            else _settled(model)
        )
    if model.server is not ServerPhase.NONE:
        return (
            ServingStep(ServingAction.NOTHING)
            if model.server is ServerPhase.SERVING
            else ServingStep(ServingAction.WAIT)
        )
    if model.not_before is not None and now < model.not_before:
        return ServingStep(ServingAction.WAIT, until=model.not_before)
    # The file and the engine are made ready at the same time: neither needs the other.
    if model.file is FilePhase.ABSENT:
        return ServingStep(ServingAction.FETCH)
    if engine.phase is EnginePhase.UNKNOWN:
        return ServingStep(ServingAction.PREPARE_ENGINE)
    if FilePhase.FAILED is model.file or engine.phase is EnginePhase.FAILED:
        return ServingStep(ServingAction.NOTHING)
    if model.file is FilePhase.READY and engine.phase is EnginePhase.READY:
        return _ready(model)
    return ServingStep(ServingAction.WAIT)


def _ready(model: ModelState) -> ServingStep:
    """File and engine are there: how is it to be served?"""
    if model.measured is None:
        return ServingStep(ServingAction.WAIT if model.measuring else ServingAction.MEASURE)
    if model.measured.fits_locally and not model.force_split:
        return ServingStep(ServingAction.START)
    split = model.split
    # With a plan but no lease there is nobody to agree with: what was measured was a little too careful.
    agreed = split is not None and split.plan is not None and (split.committed or split.lease is None)
    return ServingStep(
        ServingAction.START if agreed or (split is not None and split.disk_paging) else ServingAction.AGREE
    )


def _settled(model: ModelState) -> ServingStep:
    return ServingStep(ServingAction.WAIT if model.server is ServerPhase.STOPPING else ServingAction.NOTHING)


def restart_delay(failures: int) -> float:
    """Seconds before the next start after `failures` (>= 1) deaths in a row: doubling to a cap, then rare.

    The first restart is immediate: a process that had been serving for long and was killed has callers waiting.
    """
    if failures <= 1:
        return 0.0
    if failures >= CRASH_LOOP_FAILURES:
        return CRASH_LOOP_RETRY_SECONDS
    return backoff(failures - 2, base=BACKOFF_BASE_SECONDS, cap=BACKOFF_CAP_SECONDS)


def phase(engine: EngineState, model: ModelState) -> ModelPhase:
    """What a person is told of `model`, in one word."""
    if not model.wanted:
        return ModelPhase.STOPPED if model.server is ServerPhase.NONE else ModelPhase.STOPPING
    if model.server is ServerPhase.SERVING:
        return ModelPhase.SERVING
    if model.failures >= CRASH_LOOP_FAILURES or model.file is FilePhase.FAILED or engine.phase is EnginePhase.FAILED:
        return ModelPhase.FAILED
    if model.split is not None and model.split.refused and not model.split.disk_paging:
        return ModelPhase.FAILED
    if model.server is ServerPhase.STARTING:
        return ModelPhase.RESTARTING if model.restarts else ModelPhase.LOADING
    if model.failures:
        return ModelPhase.RESTARTING
    if model.file is FilePhase.FETCHING:
        return ModelPhase.FETCHING
    return ModelPhase.WAITING


def progress_message(engine: EngineState, model: ModelState) -> str:
    """Why a caller of `model` is waiting, for a progress comment."""
    waiting = None
    if model.split is not None and model.server is ServerPhase.NONE:
        return f"{model.split.status_text()}: {model.name}"
    if model.file is not FilePhase.READY:
        waiting = model.progress
    elif engine.phase is not EnginePhase.READY:
        waiting = engine.progress
    elif model.measuring or model.server is ServerPhase.STARTING:
        waiting = model.progress
    if waiting is None:
        return f"{phase(engine, model).value} {model.name}"
    percent = "" if waiting.fraction is None else f" {waiting.fraction * 100:.0f}%"
    return f"{waiting.stage}{percent}: {model.name}"
