"""Starts API requests, of callers and of peers alike, and gives them what they share.

It parses a body, rejects what is not a request for a model, counts and logs each request that ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.routes import Target, TargetKind
from meshllm.errors import MeshError
from meshllm.tasks import Owner
from meshllm.util.isolate import Isolation
from meshllm.web.gateway.api_request import ApiRequest, problem_of
from meshllm.web.gateway.crashed_requests import REFUSED_MESSAGE, REQUEST_CRASHED, CrashedRequests
from meshllm.web.gateway.metrics import Metrics
from meshllm.web.gateway.model_list import known_models_text
from meshllm.web.gateway.request import ProxiedRequest
from meshllm.web.gateway.request_counts import RequestCounts
from meshllm.web.gateway.request_log import (
    MAX_TEXT,
    AttemptTrace,
    LineKind,
    LineLimiter,
    Outcome,
    RequestLog,
    RequestTrace,
    attempt_log,
    log_attempt,
    log_request,
)
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_table import RoutedTargets, TargetTable
from meshllm.web.http.client import UpstreamPool
from meshllm.web.http.parser import Request
from meshllm.web.http.server import Connection
from meshllm.wire.api.errors import error_body
from meshllm.wire.api.json_size import MAX_GUEST_VALUES, MAX_VALUES, has_too_many_values
from meshllm.wire.api.request_limits import (
    problem_of_constraints,
    tasks_of,
    too_many_tasks,
    without_owner_fields,
)
from meshllm.wire.api.routes import Api

log = logging.getLogger(__name__)

JSON = "application/json"
# Paths that monitoring polls: their access lines are at DEBUG.
POLLED_PATHS = frozenset(("/health", "/v1/health", "/metrics"))


class RequestDispatcher:
    """The `RequestHost` of all requests."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        owner: Owner,
        table: TargetTable,
        metrics: Metrics,
        keys: Mapping[str, str],
        counts: RequestCounts,
    ) -> None:
        """`owner` runs connection attempts. `keys`: the API keys of backends, by URL. `counts`: callers' requests."""
        self._owner = owner
        self._call_soon = loop.call_soon
        self._limiter = LineLimiter(loop.time)
        self._table = table
        self._metrics = metrics
        self._keys = dict(keys)
        self._counts = counts
        self.now: Callable[[], float] = loop.time
        self.log = RequestLog(self.now, lambda: datetime.now(UTC).timestamp())
        self.waiting: dict[ProxiedRequest, None] = {}
        self.crashed = CrashedRequests()
        self._isolation = Isolation()
        # A peer's endpoint counts its own requests.
        self._on_end: dict[ProxiedRequest, Callable[[], None]] = {}

    # -- starting and rejecting requests

    def start(
        self,
        connection: Connection,
        request: Request,
        api: Api,
        path: str,
        trace: RequestTrace,
        *,
        cors: str = "",
        on_end: Callable[[], None] | None = None,
        guest: str = "",
    ) -> ProxiedRequest | None:
        """Start the request in `request.body`, or reject it (None). `path` is the canonical one.

        `on_end`: given for requests of peers, which only targets of this node may answer; called when it has ended.
        `guest`: the node id of a peer that is a guest, whose requests have a trust domain of their own.
        """
        from_peer = on_end is not None
        if has_too_many_values(request.body, MAX_GUEST_VALUES if guest else MAX_VALUES):
            message = "The body has too many values: send fewer inputs in one request."
            self.reject(connection, api, trace, 400, "too_large", message, cors, from_peer=from_peer)
            return None
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            message = f"The body is not valid JSON: {error}." if request.body else "The body is empty: send JSON."
            self.reject(connection, api, trace, 400, "invalid_json", message, cors, from_peer=from_peer)
            return None
        if (problem := problem_of(body)) is not None:
            parameter, message = problem
            if not from_peer:
                message += known_models_text(self._table.snapshot, self._table.index, self.now())
            self.reject(connection, api, trace, 400, "invalid_parameter", message, cors, parameter, from_peer=from_peer)
            return None
        tasks = tasks_of(api, body)
        refusal = self._refusal(api, body, tasks, guest=bool(guest))
        content = request.body
        if refusal is None and guest and (stripped := without_owner_fields(body)) is not None:
            body = stripped
            try:
                content = orjson.dumps(stripped)
            except orjson.JSONEncodeError:
                refusal = "too_large", "The body is nested too deeply.", None
        if refusal is None and self.crashed and self.crashed.refuses(content, self.now()):
            refusal = REQUEST_CRASHED, REFUSED_MESSAGE, None
        if refusal is not None:
            code, message, parameter = refusal
            self.reject(connection, api, trace, 400, code, message, cors, parameter, from_peer=from_peer)
            return None
        parsed = ApiRequest(api, path, body, content, request.headers, connection.request_id, tasks, guest)
        trace.model, trace.stream = body["model"], parsed.streams
        started = ProxiedRequest(self, connection, parsed, trace, cors=cors, from_peer=from_peer)
        if on_end is not None:
            self._on_end[started] = on_end
        if not from_peer:  # the node whose API got it has counted it
            self._counts.count(trace.model)
        started.start()
        return started

    def _refusal(
        self, api: Api, body: Mapping[str, Any], tasks: int, *, guest: bool
    ) -> tuple[str, str, str | None] | None:
        """Why a request asks too much of an engine: code, message, and the parameter; None if it does not."""
        if (found := problem_of_constraints(api, body)) is not None:
            return "too_large", found[1], found[0]
        if message := too_many_tasks(api, tasks, guest=guest):
            return "too_many_prompts", message, None
        return None

    def reject(
        self,
        connection: Connection,
        api: Api,
        trace: RequestTrace,
        status: int,
        code: str,
        message: str,
        headers: str = "",
        parameter: str | None = None,
        *,
        from_peer: bool = False,
        unrouted: bool = False,
        admitted: bool = True,
    ) -> None:
        """Send an error, and count and log the request.

        `unrouted`: rejected before its route was used. A request that is not `admitted` (its caller was not
        authenticated) is not in the request log.
        """
        if from_peer:
            self._metrics.count_peer_request("unknown", Outcome.REFUSED)
        else:
            self._metrics.count_rejected(trace.api)
        trace.error = message[:MAX_TEXT]
        self._end(trace, status, Outcome.REFUSED, LineKind.UNROUTED if unrouted else LineKind.ANSWERED)
        if admitted:
            self.log.add(trace)
        error = error_body(api, status, code, message, param=parameter, request_id=connection.request_id)
        connection.send(status, JSON, orjson.dumps(error), headers)

    def answered(self, trace: RequestTrace, status: int) -> None:
        """Log a request that was answered without a target (a list of models); it is not in the request log."""
        self._end(trace, status, Outcome.ANSWERED, LineKind.ANSWERED)

    def _end(self, trace: RequestTrace, status: int, outcome: Outcome, kind: LineKind) -> None:
        trace.status, trace.outcome, trace.ended = status, outcome, self.now()
        self._write_line(trace, kind)

    def reconsider(self) -> None:
        """The core's state has changed: every waiting request looks for a target again."""
        for request in list(self.waiting):
            self._isolation.run("reconsidering a waiting request", request.reconsider)

    # -- what requests need

    def wall(self) -> int:
        """Seconds since the epoch."""
        return int(datetime.now(UTC).timestamp())

    @property
    def node(self) -> str:
        """The first digits of this node's id; empty if it is in no mesh."""
        return self._table.node

    @property
    def affinity(self) -> SessionAffinity:
        """Which host answered which conversation last."""
        return self._table.affinity

    def find(self, model: str, *, local_only: bool) -> RoutedTargets:
        """The route of `model` now, and the queues of its targets."""
        return self._table.find_local(model) if local_only else self._table.find(model)

    def failed(self, queue: TargetQueue, model: str, now: float, *, whole: bool) -> None:
        """An attempt failed: the model rests there; with `whole`, all models of that peer or backend do."""
        self._table.failed(queue, model, now, whole=whole)

    def key_for(self, target: Target) -> str | None:
        """The API key that a backend requires."""
        return self._keys.get(target.address) if target.kind is TargetKind.BACKEND else None

    def attempt_ended(self, request: ProxiedRequest, attempt: AttemptTrace) -> None:
        """Count and log an attempt that is over."""
        if attempt.outcome is not None:
            self._metrics.count_attempt(request.kind, attempt.outcome)
        if attempt.outcome is not Outcome.ANSWERED or attempt_log.isEnabledFor(logging.DEBUG):
            log_attempt(request.trace, attempt)

    def connect(self, request: ProxiedRequest, pool: UpstreamPool) -> None:
        """Open a connection for `request`."""
        self._owner.start(self._connect(request, pool), "connect")

    async def _connect(self, request: ProxiedRequest, pool: UpstreamPool) -> None:
        try:
            connection = await pool.connect()
        except (OSError, ValueError, MeshError) as error:  # a host name that cannot be encoded is a ValueError
            request.not_connected(pool, f"connection failed: {error or type(error).__name__}")
        else:
            request.connected(connection)

    def engine_died(self, body: bytes, *, alone: bool) -> bool:
        """An engine here died while it processed `body`; returns whether that is refused from now on."""
        return self.crashed.died(body, self.now(), alone=alone)

    def host_crashed(self, body: bytes) -> None:
        """A host says that `body` crashed its engine."""
        self.crashed.reported(body, self.now())

    def waits(self, request: ProxiedRequest, waiting: bool) -> None:
        """Call `request.reconsider` on changes, or no longer."""
        if waiting:
            self.waiting[request] = None
        else:
            self.waiting.pop(request, None)

    def ended(self, request: ProxiedRequest) -> None:
        """Count and log a request that is over."""
        trace = request.trace
        outcome = trace.outcome
        assert outcome is not None
        model = trace.model if self._table.is_known(trace.model) else "unknown"
        if request.from_peer:
            self._metrics.count_peer_request(model, outcome)
            if (on_end := self._on_end.pop(request, None)) is not None:
                on_end()
        else:
            self._metrics.count_request(model, request.kind, trace)
        self.log.add(trace)
        failed = outcome is Outcome.FAILED or outcome is Outcome.LOST
        if self._write_line(trace, LineKind.FAILED if failed else LineKind.ANSWERED) and failed:
            fields = {"request_id": trace.request_id}
            what = f"a request for {trace.model} ({trace.path}) {'failed' if outcome is Outcome.FAILED else 'was lost'}"
            log.warning("%s: %s", what, trace.error, extra={"fields": fields})

    def _write_line(self, trace: RequestTrace, kind: LineKind) -> bool:
        """Write the access line, unless there are too many; afterwards, because the response is yet to be written."""
        level = logging.DEBUG if trace.path in POLLED_PATHS else logging.INFO
        if not self._limiter.allows(kind):
            return False
        self._call_soon(log_request, trace, level)
        return True
