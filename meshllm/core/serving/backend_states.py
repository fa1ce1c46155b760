"""The states of backends after an answer, or after none."""

from __future__ import annotations

from dataclasses import replace

from meshllm.core import events as e
from meshllm.core.snapshot import BackendState
from meshllm.util.backoff import backoff

# The interval of requests for the models of a healthy backend; a silent one is retried with backoff.
BACKEND_PROBE_SECONDS = 10.0
BACKEND_RETRY_BASE_SECONDS = 0.5
BACKEND_RETRY_CAP_SECONDS = 15.0


def answered(event: e.BackendAnswered, now: float) -> BackendState:
    """The backend has named its models at `now`."""
    return BackendState(event.url, healthy=True, models=event.models, reason="", next_probe=now + BACKEND_PROBE_SECONDS)


def silent(backend: BackendState, event: e.BackendSilent, now: float) -> BackendState:
    """The backend has not answered. Its models stay listed: callers get "temporarily unavailable", not "unknown
    model"."""
    delay = backoff(backend.failures, base=BACKEND_RETRY_BASE_SECONDS, cap=BACKEND_RETRY_CAP_SECONDS)
    return replace(
        backend,
        healthy=False,
        probing=False,
        reason=event.reason,
        failures=backend.failures + 1,
        next_probe=now + delay,
    )
