"""The last requests of the API as pydantic models: what `GET /api/requests` answers.

Times are seconds. Prompts and bodies are never part of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshllm.web.console.status_model import StatusModel
from meshllm.web.gateway.request_log import AttemptSummary, Outcome, RequestSummary


class AttemptStatus(StatusModel):
    """One attempt to have a request answered by a target. `started_seconds` counts from the request's arrival, the
    other times from the attempt's start; null: the attempt did not get that far."""

    number: int
    target: str
    node: str
    started_seconds: float
    connect_seconds: float | None
    first_byte_seconds: float | None
    duration_seconds: float | None
    outcome: Outcome | None
    error: str


class RequestStatus(StatusModel):
    """One API request. `started_at` is Unix time, the other times count from the request's arrival. `target` and `node`
    are those of the last attempt; `outcome` is null while the request is active."""

    id: str
    api: str
    path: str
    model: str
    caller: str
    target: str
    node: str
    status: int | None
    outcome: Outcome | None
    error: str
    stream: bool
    started_at: float
    queue_seconds: float | None
    first_byte_seconds: float | None
    duration_seconds: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    attempts: list[AttemptStatus]


class RequestsAnswer(StatusModel):
    """The last requests of the API, the newest first."""

    requests: list[RequestStatus]


def requests_answer(requests: Iterable[RequestSummary]) -> RequestsAnswer:
    """The answer for these requests."""
    return RequestsAnswer(requests=[_request(request) for request in requests])


def _request(request: RequestSummary) -> RequestStatus:
    return RequestStatus(
        id=request.request_id,
        api=request.api,
        path=request.path,
        model=request.model,
        caller=request.caller,
        target=request.target,
        node=request.node,
        status=request.status or None,
        outcome=request.outcome,
        error=request.error,
        stream=request.stream,
        started_at=round(request.started_at, 3),
        queue_seconds=_rounded(request.queue_seconds),
        first_byte_seconds=_rounded(request.first_byte_seconds),
        duration_seconds=_rounded(request.duration_seconds),
        prompt_tokens=request.prompt_tokens,
        cached_tokens=request.cached_tokens,
        completion_tokens=request.completion_tokens,
        attempts=[_attempt(attempt) for attempt in request.attempts],
    )


def _attempt(attempt: AttemptSummary) -> AttemptStatus:
    return AttemptStatus(
        number=attempt.number,
        target=attempt.target,
        node=attempt.node,
        started_seconds=round(attempt.started_seconds, 6),
        connect_seconds=_rounded(attempt.connect_seconds),
        first_byte_seconds=_rounded(attempt.first_byte_seconds),
        duration_seconds=_rounded(attempt.duration_seconds),
        outcome=attempt.outcome,
        error=attempt.error,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
