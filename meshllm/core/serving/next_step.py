"""Decides the next step for one model, from its desired and its observed state.

`next_step` is pure and settles: applying its step and feeding back the result ends in NOTHING.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshllm.core.snapshot import EnginePhase, EngineState, FilePhase, ModelPhase, ModelState, ServerPhase
from meshllm.util.backoff import backoff

# A server that has answered for this long (seconds) was stable: its next crash counts as the first.
STABLE_SECONDS = 60.0
# After this many crashes in a row the model is FAILED: its callers get an error at once instead of waiting. Restarts go
# on, slowly: the cause (no memory, for example) may be over.
CRASH_LOOP_FAILURES = 5
BACKOFF_BASE_SECONDS = 0.5
BACKOFF_CAP_SECONDS = 30.0
CRASH_LOOP_RETRY_SECONDS = 120.0
# A model that is requested and not served is decided on again this often, whatever it waits for: no event is needed.
RECHECK_SECONDS = 1.0


class ServingAction(Enum):
    """What to do next for a model."""

    NOTHING = "nothing"
    WAIT = "wait"
    PREPARE_ENGINE = "prepare engine"
    FETCH = "fetch"
    MEASURE = "measure"
    ADVANCE_LEASE = "advance lease"
    START = "start"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class ServingStep:
    """The next step. `until`: for WAIT, when to ask again (None: after the next event)."""

    action: ServingAction
    until: float | None = None


def waits(model: ModelState) -> bool:
    """Whether `model` must be served, and is not yet."""
    wanted = model.wanted and not model.unloaded
    return wanted and model.server is not ServerPhase.SERVING and model.file is not FilePhase.FAILED


def next_step(engine: EngineState, model: ModelState, now: float) -> ServingStep:
    """The next step for `model` at `now` (seconds, monotonic). Deterministic."""
    if not model.wanted or model.unloaded:
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
    # The file and the engine are prepared at the same time.
    if model.file is FilePhase.ABSENT:
        return ServingStep(ServingAction.FETCH)
    if engine.phase is EnginePhase.UNKNOWN:
        return ServingStep(ServingAction.PREPARE_ENGINE)
    if model.file is FilePhase.FAILED:
        return ServingStep(ServingAction.NOTHING)
    if engine.phase is EnginePhase.FAILED:
        if engine.not_before is None or now >= engine.not_before:
            return ServingStep(ServingAction.PREPARE_ENGINE)
        return ServingStep(ServingAction.WAIT, until=engine.not_before)
    if model.file is FilePhase.READY and engine.phase is EnginePhase.READY:
        return _ready(model)
    return ServingStep(ServingAction.WAIT)


def _ready(model: ModelState) -> ServingStep:
    """The next step once file and engine are ready."""
    if model.measured is None:
        return ServingStep(ServingAction.WAIT if model.measuring else ServingAction.MEASURE)
    if model.measured.fits_locally and not model.force_split:
        return ServingStep(ServingAction.START)
    split = model.split
    # A plan without a lease: the planner's estimate is lower than the measurement, and the model fits on this node.
    agreed = split is not None and split.plan is not None and (split.committed or split.lease is None)
    return ServingStep(
        ServingAction.START if agreed or (split is not None and split.disk_paging) else ServingAction.ADVANCE_LEASE
    )


def _settled(model: ModelState) -> ServingStep:
    return ServingStep(ServingAction.WAIT if model.server is ServerPhase.STOPPING else ServingAction.NOTHING)


def restart_delay(failures: int) -> float:
    """Seconds before the next start after `failures` (>= 1) crashes in a row: doubling to a cap, then rare.

    The first restart is immediate: callers wait for it.
    """
    if failures <= 1:
        return 0.0
    if failures >= CRASH_LOOP_FAILURES:
        return CRASH_LOOP_RETRY_SECONDS
    return backoff(failures - 2, base=BACKOFF_BASE_SECONDS, cap=BACKOFF_CAP_SECONDS)


def phase(engine: EngineState, model: ModelState) -> ModelPhase:
    """The state of `model` for users."""
    if not model.wanted:
        return ModelPhase.STOPPED if model.server is ServerPhase.NONE else ModelPhase.STOPPING
    if model.unloaded:
        return ModelPhase.AVAILABLE if model.server is ServerPhase.NONE else ModelPhase.STOPPING
    if model.server is ServerPhase.SERVING:
        return ModelPhase.SERVING
    if model.file is FilePhase.FAILED or engine.broken:
        return ModelPhase.FAILED
    if model.file is FilePhase.FETCHING or download_failed(model):
        return ModelPhase.FETCHING
    if model.failures >= CRASH_LOOP_FAILURES:
        return ModelPhase.FAILED
    if model.split is not None and model.split.refused and not model.split.disk_paging:
        return ModelPhase.FAILED
    if model.server is ServerPhase.STARTING:
        return ModelPhase.RESTARTING if model.restarts else ModelPhase.LOADING
    if model.failures:
        return ModelPhase.RESTARTING if model.restarts else ModelPhase.LOADING
    return ModelPhase.WAITING


def download_failed(model: ModelState) -> bool:
    """Whether the file could not be downloaded at the last attempt, and nothing has arrived since then."""
    return bool(model.failures and model.reason and model.file in (FilePhase.ABSENT, FilePhase.FETCHING))


def progress_message(engine: EngineState, model: ModelState) -> str:
    """What a caller of `model` waits for, for a progress comment."""
    waiting = None
    if model.split is not None and model.server is ServerPhase.NONE:
        return f"{model.split.status_text()}: {model.name}"
    if model.unloaded:
        return f"loading {model.name}"
    if model.file is not FilePhase.READY:
        waiting = model.progress
    elif engine.phase is not EnginePhase.READY:
        waiting = engine.progress
    elif model.measuring or model.server is ServerPhase.STARTING or model.measured is not None:
        waiting = model.progress
    if waiting is None:
        return f"{phase(engine, model).value} {model.name}"
    percent = "" if waiting.fraction is None else f" {waiting.fraction * 100:.0f}%"
    return f"{waiting.stage}{percent}: {model.name}"
