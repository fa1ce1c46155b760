"""The last requests of the API, with their attempts: a bounded ring for the console, and one log line per request.

A request fills in its `RequestTrace` while it runs; summaries are computed only when the ring is read.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from meshllm.util.rate_limiter import TokenBucket

access_log = logging.getLogger("meshllm.access")
attempt_log = logging.getLogger("meshllm.gateway")

MAX_REQUESTS = 200
# Access lines per second and in a burst: far more than engines serve. A line costs as much as a small request.
LINES_PER_SECOND = 50.0
LINES_AT_ONCE = 50.0
# The same for requests that were refused before they had a model: a scanner must not displace the lines of callers.
UNROUTED_LINES_PER_SECOND = 5.0
UNROUTED_LINES_AT_ONCE = 10.0
# Longest string that a summary keeps: model names and error texts come from callers and peers.
MAX_TEXT = 300
# The caller in the trace of a request of this machine.
LOCAL_CALLER = "local"
# The number of lines left out is logged at most this often (seconds).
NOTE_SECONDS = 1.0
# Once a line was left out, the allowance is checked again after this time (seconds).
PAUSE_SECONDS = 0.25 / LINES_PER_SECOND


class Outcome(Enum):
    """How a request or an attempt ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # an error below 500: the request is at fault, or there is no capacity
    FAILED = "failed"
    LOST = "lost"  # the target failed after the answer had begun
    ABANDONED = "abandoned"  # the caller went away


# See `routes.ENGINE`.
ANSWERED, REFUSED, FAILED, LOST = Outcome.ANSWERED, Outcome.REFUSED, Outcome.FAILED, Outcome.LOST


@dataclass(frozen=True, slots=True)
class AttemptSummary:
    """One attempt to have a request answered by a target. Times in seconds; None: it did not come to that.

    `started_seconds` counts from the request's arrival, the others from the attempt's start. `number` starts at 1.
    `target` is "engine", "backend URL" or "peer ID"; `node` the first digits of the id of the node asked, if known.
    """

    number: int
    target: str
    node: str
    started_seconds: float
    connect_seconds: float | None
    first_byte_seconds: float | None
    duration_seconds: float | None
    outcome: Outcome | None
    error: str


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """One API request. `started_at` in seconds since the epoch; other times in seconds from its arrival.

    `caller`: "local", "remote ADDRESS" or "peer ID". `target` and `node` are those of the last attempt. `outcome` None:
    the request is at work. Empty strings and None mean unknown.
    """

    request_id: str
    api: str
    path: str
    model: str
    caller: str
    target: str
    node: str
    status: int
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
    attempts: tuple[AttemptSummary, ...]


class AttemptTrace:
    """An attempt as its request writes it down. Times are of the monotonic clock."""

    __slots__ = ("connected", "ended", "error", "first_byte", "node", "outcome", "started", "target")

    def __init__(self, target: str, node: str, started: float) -> None:
        self.target = target
        self.node = node
        self.started = started
        self.connected: float | None = None
        self.first_byte: float | None = None
        self.ended: float | None = None
        self.outcome: Outcome | None = None
        self.error = ""


class RequestTrace:
    """A request as it is written down while it runs. `started` and `ended` are of the monotonic clock."""

    __slots__ = (
        "api",
        "attempts",
        "cached_tokens",
        "caller",
        "completion_tokens",
        "ended",
        "error",
        "first_byte",
        "model",
        "outcome",
        "path",
        "prompt_tokens",
        "queue_seconds",
        "request_id",
        "started",
        "status",
        "stream",
    )

    def __init__(self, request_id: str, api: str, path: str, caller: str, started: float) -> None:
        self.request_id = request_id
        self.api = api
        self.path = path
        self.caller = caller
        self.started = started
        self.model = ""
        self.stream = False
        self.queue_seconds: float | None = None
        self.first_byte: float | None = None
        self.ended: float | None = None
        self.status = 0
        self.outcome: Outcome | None = None
        self.error = ""
        self.prompt_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.attempts: list[AttemptTrace] = []


def log_attempt(trace: RequestTrace, attempt: AttemptTrace) -> None:
    """Write a line about an attempt that ended, the last one of `trace`: INFO if it failed, else DEBUG."""
    answered = attempt.outcome is Outcome.ANSWERED
    level = logging.DEBUG if answered or attempt.outcome is Outcome.ABANDONED else logging.INFO
    if not attempt_log.isEnabledFor(level):
        return
    number, outcome = len(trace.attempts), attempt.outcome.value if attempt.outcome is not None else ""
    fields = {
        "request_id": trace.request_id,
        "attempt": number,
        "target": attempt.target,
        "node": attempt.node,
        "outcome": outcome,
        "error": attempt.error,
        "connect_ms": _milliseconds(attempt.started, attempt.connected),
        "first_byte_ms": _milliseconds(attempt.started, attempt.first_byte),
        "duration_ms": _milliseconds(attempt.started, attempt.ended),
    }
    _emit(attempt_log, level, "attempt %d at %s: %s", (number, attempt.target, outcome), fields)


def log_request(trace: RequestTrace, level: int = logging.INFO) -> None:
    """Write the access line of a request that ended."""
    if not access_log.isEnabledFor(level):
        return
    last = trace.attempts[-1] if trace.attempts else None
    fields = {
        "request_id": trace.request_id,
        "api": trace.api,
        "path": trace.path,
        "model": trace.model,
        "caller": trace.caller,
        "target": last.target if last is not None else "",
        "node": last.node if last is not None else "",
        "attempts": len(trace.attempts),
        "queue_ms": None if trace.queue_seconds is None else round(trace.queue_seconds * 1000, 1),
        "first_byte_ms": _milliseconds(trace.started, trace.first_byte),
        "duration_ms": _milliseconds(trace.started, trace.ended),
        "status": trace.status,
        "outcome": trace.outcome.value if trace.outcome is not None else "",
        "error": trace.error,
        "prompt_tokens": trace.prompt_tokens,
        "cached_tokens": trace.cached_tokens,
        "completion_tokens": trace.completion_tokens,
        "stream": trace.stream,
    }
    _emit(access_log, level, "%s %d", (trace.path, trace.status), fields)


def _emit(
    logger: logging.Logger, level: int, message: str, arguments: tuple[object, ...], fields: dict[str, object]
) -> None:
    """Log a record without the search for the calling line, which costs more than all else."""
    record = logging.LogRecord(logger.name, level, __file__, 0, message, arguments, None)
    record.fields = fields
    logger.handle(record)


def _milliseconds(start: float, moment: float | None) -> float | None:
    return None if moment is None else round(max(0.0, moment - start) * 1000, 1)


class LineKind(Enum):
    """Which budget an access line uses."""

    ANSWERED = "answered"  # answered, abandoned, or refused after the request was accepted
    FAILED = "failed"
    UNROUTED = "unrouted"  # unauthenticated, malformed, or for a path or method that does not exist


LINE = LineKind.ANSWERED


class _LineBudget:
    """The lines of one kind: how many may be written now, and how many were left out and not yet reported."""

    __slots__ = ("bucket", "left_out", "noted", "pause", "rate")

    def __init__(self, rate: float, at_once: float, now: float) -> None:
        self.rate = rate
        self.bucket = TokenBucket(rate, at_once, now)
        self.left_out = 0
        self.pause = self.noted = now


class LineLimiter:
    """Bounds the log lines of requests: a caller that floods the API must not push all else out of the rotated log.

    Each `LineKind` has a budget. Lines left out are counted, and the count is logged at most once in `NOTE_SECONDS`.
    The metrics have every request.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        start = now()
        self._answered = _LineBudget(LINES_PER_SECOND, LINES_AT_ONCE, start)
        self._failed = _LineBudget(LINES_PER_SECOND, LINES_AT_ONCE, start)
        self._unrouted = _LineBudget(UNROUTED_LINES_PER_SECOND, UNROUTED_LINES_AT_ONCE, start)

    def allows(self, kind: LineKind = LINE) -> bool:
        """Whether the lines of a request that ended now may be written."""
        budget = self._answered if kind is LINE else self._failed if kind is LineKind.FAILED else self._unrouted
        now = self._now()
        if now < budget.pause:
            budget.left_out += 1
            return False
        if not budget.bucket.take(now):
            budget.left_out += 1
            budget.pause = now + PAUSE_SECONDS
            return False
        if budget.left_out and now - budget.noted >= NOTE_SECONDS:
            budget.noted = now
            fields: dict[str, object] = {"left_out": budget.left_out, "limit_per_second": budget.rate}
            budget.left_out = 0
            _emit(access_log, logging.INFO, "access lines were left out: too many requests", (), fields)
        return True


class RequestLog:
    """The last `limit` requests that ended."""

    def __init__(self, now: Callable[[], float], wall: Callable[[], float], limit: int = MAX_REQUESTS) -> None:
        """`now` is the monotonic clock that traces use, `wall` the time since the epoch; both in seconds."""
        self._now = now
        self._wall = wall
        self._ended: deque[RequestTrace] = deque(maxlen=limit)

    def add(self, trace: RequestTrace) -> None:
        """A request has ended."""
        self._ended.append(trace)

    def snapshot(self) -> tuple[RequestSummary, ...]:
        """The requests, the newest first."""
        offset = self._wall() - self._now()
        return tuple(_summary(trace, offset) for trace in reversed(self._ended))


def _summary(trace: RequestTrace, offset: float) -> RequestSummary:
    last = trace.attempts[-1] if trace.attempts else None
    return RequestSummary(
        request_id=trace.request_id,
        api=trace.api,
        path=trace.path[:MAX_TEXT],
        model=trace.model[:MAX_TEXT],
        caller=trace.caller,
        target=last.target if last is not None else "",
        node=last.node if last is not None else "",
        status=trace.status,
        outcome=trace.outcome,
        error=trace.error[:MAX_TEXT],
        stream=trace.stream,
        started_at=trace.started + offset,
        queue_seconds=trace.queue_seconds,
        first_byte_seconds=_since(trace.started, trace.first_byte),
        duration_seconds=_since(trace.started, trace.ended),
        prompt_tokens=trace.prompt_tokens,
        cached_tokens=trace.cached_tokens,
        completion_tokens=trace.completion_tokens,
        attempts=tuple(_attempts(trace.attempts, trace.started)),
    )


def _attempts(attempts: Iterable[AttemptTrace], began: float) -> Iterable[AttemptSummary]:
    for number, each in enumerate(attempts, 1):
        yield AttemptSummary(
            number=number,
            target=each.target,
            node=each.node,
            started_seconds=each.started - began,
            connect_seconds=_since(each.started, each.connected),
            first_byte_seconds=_since(each.started, each.first_byte),
            duration_seconds=_since(each.started, each.ended),
            outcome=each.outcome,
            error=each.error[:MAX_TEXT],
        )


def _since(start: float, moment: float | None) -> float | None:
    return None if moment is None else max(0.0, moment - start)
