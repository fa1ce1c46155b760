"""Starts API requests, of callers and of peers alike, and gives them what they share; counts and logs their ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson

from meshllm.core.routing.routes import BACKEND, ENGINE, TargetKind
from meshllm.tasks import Owner
from meshllm.util.isolate import Isolation
from meshllm.web.gateway.api_request import ApiRequest
from meshllm.web.gateway.auto_model import AutoModels
from meshllm.web.gateway.crashed_requests import CrashedRequests
from meshllm.web.gateway.metrics import Metrics
from meshllm.web.gateway.relay import JSON
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.request_counts import RequestCounts
from meshllm.web.gateway.request_log import (
    ANSWERED,
    FAILED,
    LINE,
    LOST,
    MAX_TEXT,
    REFUSED,
    AttemptTrace,
    LineKind,
    LineLimiter,
    RequestLog,
    RequestTrace,
    attempt_log,
    log_attempt,
    log_request,
)
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_table import TargetTable
from meshllm.web.http.parser import Request
from meshllm.web.http.server import CallerConnection
from meshllm.wire.api.errors import error_body
from meshllm.wire.api.routes import Api

log = logging.getLogger(__name__)
T = TypeVar("T")

# Paths that monitoring polls: their access lines are at DEBUG.
POLLED_PATHS = frozenset(("/health", "/v1/health", "/api/hello", "/metrics"))
UNKNOWN = "unknown"


class RequestRecorder:
    """Writes down what has ended. `log`: the last requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, metrics: Metrics, is_known: Callable[[str], bool]) -> None:
        """`is_known`: whether a model exists; names that callers make up must not become labels."""
        self._call_soon = loop.call_soon
        self._now: Callable[[], float] = loop.time
        self._metrics = metrics
        self._is_known = is_known
        self._limiter = LineLimiter(loop.time)
        self.log = RequestLog(loop.time, lambda: datetime.now(UTC).timestamp())

    def attempt_ended(self, trace: RequestTrace, attempt: AttemptTrace, kind: TargetKind) -> None:
        """The last attempt of a request, at a target of this `kind`, has ended."""
        outcome = attempt.outcome
        assert outcome is not None
        self._metrics.count_attempt(kind, outcome)
        if outcome is not ANSWERED or attempt_log.isEnabledFor(logging.DEBUG):
            log_attempt(trace, attempt)

    def ended(self, trace: RequestTrace, kind: TargetKind | None, *, from_peer: bool) -> None:
        """A request has ended. `kind`: of its last target; None: it had none."""
        outcome = trace.outcome
        assert outcome is not None
        model = trace.model if trace.model and self._is_known(trace.model) else UNKNOWN
        if from_peer:
            self._metrics.count_peer_request(model, outcome)
        elif trace.model:
            self._metrics.count_request(model, kind, trace)
        else:
            self._metrics.count_rejected(trace.api)
        if kind is ENGINE and trace.prompt_tokens is not None:
            self._metrics.count_engine_tokens(model, trace)
        self.log.add(trace)
        failed = outcome is FAILED or outcome is LOST
        if self._write_line(trace, LineKind.FAILED if failed else LINE) and failed:
            fields = {"request_id": trace.request_id}
            what = f"a request for {trace.model} ({trace.path}) {'failed' if outcome is FAILED else 'was lost'}"
            log.warning("%s: %s", what, trace.error, extra={"fields": fields})

    def rejected(self, trace: RequestTrace, *, from_peer: bool, unrouted: bool, admitted: bool) -> None:
        """What is no request for a model was answered with an error; arguments as of `Proxy.reject`."""
        if from_peer:
            self._metrics.count_peer_request(UNKNOWN, REFUSED)
        else:
            self._metrics.count_rejected(trace.api)
        self._write_line(trace, LineKind.UNROUTED if unrouted else LINE)
        if admitted:
            self.log.add(trace)

    def answered(self, trace: RequestTrace, status: int) -> None:
        """A request was answered without a target (a list of models); it is not in the request log."""
        trace.status, trace.outcome, trace.ended = status, ANSWERED, self._now()
        self._write_line(trace, LINE)

    def _write_line(self, trace: RequestTrace, kind: LineKind) -> bool:
        """Write the access line, unless there are too many; afterwards, because the response is yet to be written."""
        if not self._limiter.allows(kind):
            return False
        level = logging.DEBUG if trace.path in POLLED_PATHS else logging.INFO
        self._call_soon(log_request, trace, level)
        return True


class Proxy:
    """What all requests share: the targets, the requests that wait, what is counted and logged."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owners: tuple[Owner, Owner],
        table: TargetTable,
        metrics: Metrics,
        keys: Mapping[str, str],
        counts: RequestCounts,
    ) -> None:
        """`owners` of the requests, and of the steps that need a task. `keys`: the API keys of backends, by URL.

        `counts`: callers' requests.
        """
        self.loop = loop
        self.now: Callable[[], float] = loop.time
        self.table = table
        self.counts = counts
        self.recorder = RequestRecorder(loop, metrics, table.is_known)
        self.crashed = CrashedRequests()
        self.auto = AutoModels(table)
        self.waiting: dict[ProxiedRequest, None] = {}
        self._owner, self._steps = owners
        self._keys = dict(keys)
        self._isolation = Isolation()
        table.on_engine_died = self._engine_died

    def start(
        self,
        connection: CallerConnection,
        http: Request,
        api: Api,
        path: str,
        trace: RequestTrace,
        *,
        cors: str = "",
        on_end: Callable[[], None] | None = None,
        guest: str = "",
    ) -> ProxiedRequest:
        """Start the request in `http.body`: it may have ended on return. `path` is the canonical one.

        `on_end`: given for requests of peers, which only targets of this node may answer; called when it has ended.
        `guest`: the node id of a peer that is a guest, whose requests have a trust domain of their own.
        """
        request = ProxiedRequest(self, connection, http, api, path, trace, cors, on_end, guest)
        request.task = self._owner.start_eagerly(request.run(), "request")
        return request

    async def in_task(self, step: Coroutine[Any, Any, T], name: str) -> T:
        """What `step` of a request returns: it runs as a task, which connections and time limits need."""
        return await self._steps.start(step, name)

    def reject(
        self,
        connection: CallerConnection,
        api: Api,
        trace: RequestTrace,
        status: int,
        code: str,
        message: str,
        headers: str = "",
        *,
        from_peer: bool = False,
        unrouted: bool = False,
        admitted: bool = True,
    ) -> None:
        """Send an error to what is no request for a model, and count and log it.

        `unrouted`: rejected before its route was used. A request that is not `admitted` (its caller was not
        authenticated) is not in the request log.
        """
        trace.status, trace.outcome, trace.error, trace.ended = status, REFUSED, message[:MAX_TEXT], self.now()
        self.recorder.rejected(trace, from_peer=from_peer, unrouted=unrouted, admitted=admitted)
        error = error_body(api, status, code, message, request_id=connection.request_id)
        connection.send(status, JSON, orjson.dumps(error), headers)

    def reconsider(self) -> None:
        """The core's state has changed: every waiting request looks for a target again."""
        for request in list(self.waiting):
            self._isolation.run("reconsidering a waiting request", request.wake)

    def waits(self, request: ProxiedRequest, waiting: bool) -> None:
        """Wake `request` whenever something changes, or no longer."""
        if waiting:
            self.waiting[request] = None
        else:
            self.waiting.pop(request, None)

    def key_for(self, queue: TargetQueue) -> str | None:
        """The API key that a backend requires."""
        return self._keys.get(queue.target.address) if queue.target.kind is BACKEND else None

    def wall(self) -> int:
        """Seconds since the epoch, for timestamps that callers see."""
        return int(datetime.now(UTC).timestamp())

    def died_of(self, request: ApiRequest, queue: TargetQueue) -> bool:
        """An engine here died while it processed `request`; returns whether that is refused from now on."""
        digest = request.digest
        alone = queue.suspects.died(digest)
        if alone is None:
            return self.crashed.refuses(digest, self.now())
        return self.crashed.died(digest, self.now(), alone=alone)

    def _engine_died(self, queue: TargetQueue) -> None:
        """An engine process here died: requests that it was left alone with by their callers count, too."""
        now = self.now()
        for digest, alone in queue.suspects.died_abandoned(queue.in_progress, now):
            self.crashed.died(digest, now, alone=alone)
