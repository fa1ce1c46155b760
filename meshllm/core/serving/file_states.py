"""The state of a model after an event of its file. Pure."""

from __future__ import annotations

from dataclasses import replace

from meshllm.core import events as e
from meshllm.core.serving.phases import FILE_TRANSITIONS
from meshllm.core.snapshot import FilePhase, ModelState
from meshllm.util.backoff import backoff

# A download that failed for a passing reason is retried after these delays (seconds), doubling from base to cap.
FETCH_RETRY_BASE_SECONDS = 5.0
FETCH_RETRY_CAP_SECONDS = 300.0
RETRIED = "This node tries again by itself, at first after some seconds, later every 5 minutes."


def progressed(model: ModelState, event: e.FileProgress) -> ModelState:
    """The model while its file is downloaded, or that of its draft model while it is measured."""
    if model.file is not FilePhase.FETCHING and not model.measuring:
        return model
    if model.progress is not None and event.progress.done > model.progress.done:
        model = replace(model, reason="", advice="")
    return replace(model, progress=event.progress)


def ready(model: ModelState, event: e.FileReady) -> ModelState:
    """The model once its file is there."""
    if (model.file, FilePhase.READY) not in FILE_TRANSITIONS:
        return model
    return replace(
        model,
        file=FilePhase.READY,
        facts=event.facts,
        progress=None,
        failures=0,
        reason="",
        advice="",
        unknown=False,
    )


def failed(model: ModelState, event: e.FileFailed, now: float) -> ModelState:
    """The model whose file could not be had: tried again later, unless that is `final`."""
    phase = FilePhase.FAILED if event.final else FilePhase.ABSENT
    if (model.file, phase) not in FILE_TRANSITIONS:
        return model
    failures = model.failures + 1
    delay = backoff(failures - 1, base=FETCH_RETRY_BASE_SECONDS, cap=FETCH_RETRY_CAP_SECONDS)
    return replace(
        model,
        file=phase,
        not_before=None if event.final else now + delay,
        failures=failures,
        progress=None,
        reason=event.reason,
        advice=event.advice if event.final else f"{event.advice} {RETRIED}".lstrip(),
    )
