"""One API request, of a caller or of a peer, from its body to the end of its response: a coroutine with retries.

`ProxiedRequest.run` reads from top to bottom: understand the body, select a target, attempt, relay, end. A request
ends exactly once: with a response, with a typed error in the shape of its API, or because the caller went away. Until
part of a response has been forwarded, another target (or the model's next engine process) is tried; after that the
stream ends with a typed error. A streaming caller gets data or a comment at least every `relay.SILENCE_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import orjson

from meshllm.core.routing.routes import ENGINE, PEER, ModelRoute, TargetKind
from meshllm.tasks import EagerTask, Signal
from meshllm.web.gateway.api_request import ApiRequest, WholeResponse, understand
from meshllm.web.gateway.auto_model import model_header
from meshllm.web.gateway.crashed_requests import REFUSED_MESSAGE, REQUEST_CRASHED
from meshllm.web.gateway.model_list import known_models_text
from meshllm.web.gateway.relay import JSON, MAX_LATE, Relay, ResponseWriter
from meshllm.web.gateway.request_log import (
    ANSWERED,
    FAILED,
    LOCAL_CALLER,
    LOST,
    MAX_TEXT,
    REFUSED,
    AttemptTrace,
    Outcome,
    RequestTrace,
)
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_selection import TargetSelection
from meshllm.web.gateway.target_table import RoutedTargets
from meshllm.web.gateway.upstream_errors import (
    CONTEXT,
    AttemptFailed,
    ConnectionLost,
    RequestFailed,
    TargetRefused,
    UpstreamError,
    error_message_in,
    retryable_error_in,
)
from meshllm.web.gateway.usage import TokenUsage, whole_usage
from meshllm.web.http.parser import Request
from meshllm.web.http.server import CallerConnection
from meshllm.wire.api.errors import error_body, translate_error
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api
from meshllm.wire.api.worker_loss import UPSTREAM_LOST, WORKER_LOST, worker_loss_message

if TYPE_CHECKING:
    from meshllm.web.gateway.proxy import Proxy

# How long a request avoids a target that failed it.
AVOID_SECONDS = 1.0
MAX_ATTEMPTS = 4
# Engine processes that may end while they process a request: then it is not tried again, here or at another host.
MAX_DEATHS = 2
# How long a stream whose engine closed the connection waits for the cause.
CAUSE_SECONDS = 1.0
# A timer may fire so much early.
TIMER_SECONDS = 0.002
# How long a caller waits for a model that is being loaded. A streaming caller gets comments meanwhile. Any other would
# wait in silence, and gets a 503 with Retry-After, which SDKs act upon, before their own timeout (600 s).
WAIT_STREAMING_SECONDS = 3600.0
WAIT_SILENT_SECONDS = 300.0
DEFECT = "This node failed to answer the request, which is a defect of mesh-llm. Its log has the error."
_CRASHED_MARK = f'"{REQUEST_CRASHED}"'.encode()


class _End(NamedTuple):
    """How a request ends. `write` writes the rest of the response, once everything has been released."""

    outcome: Outcome
    status: int
    error: str
    write: Callable[[], None]


class ProxiedRequest:
    """A request while its coroutine runs, and what is told to it meanwhile: a slot is granted, the caller went away."""

    __slots__ = (
        "_change",
        "_cors",
        "_deaths",
        "_granted",
        "_guest",
        "_http",
        "_on_end",
        "_path",
        "_queued",
        "_relay",
        "_selection",
        "_stopping",
        "_suspected",
        "api",
        "connection",
        "from_peer",
        "kind",
        "message",
        "model",
        "proxy",
        "request",
        "streams",
        "task",
        "trace",
        "writer",
    )
    request: ApiRequest
    writer: ResponseWriter
    task: EagerTask
    _selection: TargetSelection

    def __init__(
        self,
        proxy: Proxy,
        connection: CallerConnection,
        http: Request,
        api: Api,
        path: str,
        trace: RequestTrace,
        cors: str,
        on_end: Callable[[], None] | None,
        guest: str,
    ) -> None:
        self.proxy = proxy
        self.connection = connection
        self.api = api
        self.trace = trace
        self.from_peer = on_end is not None
        self.model = self.message = ""
        self.streams = False
        self.kind: TargetKind | None = None  # of the last target
        self._http = http
        self._path = path
        self._cors = cors
        self._on_end = on_end
        self._guest = guest
        self._stopping = False
        # The attempt in progress; the queue it waits in, the slot it was given there, and the signal that wakes it.
        self._relay: Relay | None = None
        self._queued: TargetQueue | None = None
        self._granted: TargetQueue | None = None
        self._change: Signal[None] | None = None
        # The engine that closed the connection while it processed this request, and how many have died.
        self._suspected: TargetQueue | None = None
        self._deaths = 0

    # -- the request, from its body to its end

    async def run(self) -> None:
        """The whole of it. This is the only place where a request ends."""
        try:
            try:
                self._understand()
                end = await self._answer()
            except RequestFailed as failed:
                end = self._error(failed)
            except asyncio.CancelledError:
                if not self._stopping:
                    self._abandon()
                    return
                end = self._error(RequestFailed(503, "stopping", "This node is stopping.", "retry-after: 10\r\n"))
            self._release(end.outcome, end.status, end.error)
            end.write()
        except BaseException:
            self._break()
            raise

    def _break(self) -> None:
        """A defect of this program: return what the request holds, and do not leave the caller waiting."""
        try:
            if self.trace.outcome is None:
                self._release(FAILED, 500, DEFECT)
        finally:
            writer = getattr(self, "writer", None)  # it may have failed before there was one
            try:
                # A peer's gateway tries another host if the connection ends.
                if self.connection.busy and not self.from_peer and (writer is None or not writer.streaming):
                    error = error_body(self.api, 500, "internal_error", DEFECT, request_id=self.trace.request_id)
                    self.connection.send(500, JSON, orjson.dumps(error), self._cors)
            finally:
                if self.connection.busy:
                    self.connection.abort()

    def _understand(self) -> None:
        """Parse and check the body. Raises RequestFailed if it is no request for a model, or has crashed engines."""
        proxy, trace, from_peer = self.proxy, self.trace, self.from_peer
        known = None if from_peer else self._known_models
        request = understand(self.api, self._path, self._http, trace.request_id, guest=self._guest, known_models=known)
        model = request.model
        if not from_peer:
            if proxy.table.is_auto(model):
                name = proxy.auto.pick(request, proxy.now())
                self._cors += model_header(name)
            else:
                name = proxy.table.name_of(model)
            if name != model:
                request.rename(name)
                model = name
        if proxy.crashed.found and proxy.crashed.refuses(request.digest, proxy.now()):
            raise RequestFailed(400, REQUEST_CRASHED, REFUSED_MESSAGE)
        self.request = request
        self.model = trace.model = model
        self.streams = trace.stream = request.streams
        if not from_peer:  # the node whose API got it has counted it
            proxy.counts.count(model)
        local = trace.caller == LOCAL_CALLER
        self.writer = ResponseWriter(self.connection, request, self._cors, trace.started, local, from_peer)

    def _known_models(self) -> str:
        table = self.proxy.table
        return known_models_text(table.snapshot, table.index, self.proxy.now(), table.aliases)

    async def _answer(self) -> _End:
        """Attempts at one target after the other, until one has answered. Raises RequestFailed if none can."""
        proxy, model = self.proxy, self.model
        selection = TargetSelection(self.request, proxy.table.affinity, proxy.table.prefixes, from_peer=self.from_peer)
        self._selection = selection
        failures = late = 0
        while True:
            queue = await self._select(selection)
            try:
                return await self._attempt(queue, late if failures < MAX_ATTEMPTS - 1 else MAX_LATE)
            except TargetRefused as refused:
                error = refused.error
                self._close_attempt(REFUSED, f"{error.code or error.status}: {error.message}")
                if not selection.refused(queue, error, proxy.now()):
                    message = f"{model} is temporarily unavailable. Retry."
                    raise RequestFailed(503, "model_unavailable", message, "retry-after: 5\r\n") from None
            except AttemptFailed as failed:
                heard = self._close_attempt(FAILED, failed.reason)
                self.note_failure(queue, whole=failed.whole)
                until = proxy.now() + AVOID_SECONDS
                selection.avoid(queue, until, failed.reason, whole=failed.whole, silent_since=heard)
                failures += 1
                late += failed.slow
                if failures >= MAX_ATTEMPTS:
                    message = f"{model}: {failures} attempts failed, the last one at {queue.name}: {failed.reason}."
                    raise RequestFailed(502, UPSTREAM_LOST, message, "retry-after: 5\r\n") from None

    async def _select(self, selection: TargetSelection) -> TargetQueue:
        """The target of the next attempt, with its slot; waits for one. Raises RequestFailed if none can be had."""
        proxy, trace, since = self.proxy, self.trace, None
        try:
            while True:
                route, queues = self._find()
                if self._suspected is not None:
                    self._refuse_if_died_of_it(route)
                if self._queued is not None and self._queued not in queues:
                    self._leave_queue()
                now = proxy.now()
                found = selection.decide(route, queues, self, self._queued, now)
                if isinstance(found, TargetQueue):
                    trace.queue_seconds = trace.queue_seconds or 0.0
                    return found
                if found.queue is not self._queued:
                    self._leave_queue()
                    self._queued = found.queue
                self.message = found.message
                if since is None:
                    since = now
                    proxy.waits(self, True)
                elif now - trace.started > (WAIT_STREAMING_SECONDS if self.streams else WAIT_SILENT_SECONDS):
                    waited = f"{self.model} is not ready after {now - trace.started:.0f} s: {self.message}."
                    raise RequestFailed(503, "model_not_ready", f"{waited} Retry later.", "retry-after: 10\r\n")
                await self._changed()
                if (granted := self._granted) is not None:
                    self._granted = None
                    return granted
        finally:
            if since is not None:
                trace.queue_seconds = (trace.queue_seconds or 0.0) + proxy.now() - since
                self._stop_waiting()

    async def _attempt(self, queue: TargetQueue, late: int) -> _End:
        """Send the request to a target and relay its response, except for its end.

        `late`: how many hosts it has left because they were slow; MAX_LATE: it leaves no more. Raises AttemptFailed,
        TargetRefused and RequestFailed.
        """
        relay = self._open_attempt(queue, late)
        request, pool = self.request, queue.pool
        if relay.kind is ENGINE:
            offer = queue.offer
            if (refusal := request.prepare(offer.template, offer.vectors)) is not None:
                raise RequestFailed.by(refusal)
        data = request.wire(pool, self.proxy.key_for(queue))
        connection = pool.take()
        while True:
            if connection is None:
                connection = await self.proxy.in_task(relay.connect(), "connect")
                self._suspected = None
            self.message = "processing the prompt" if queue.offer.loaded else f"loading {self.model} on {queue.name}"
            try:
                await relay.exchange(connection, data)
                break
            except ConnectionLost as lost:
                if relay.kind is ENGINE:
                    self._suspected = queue
                    queue.suspects.lost(queue.in_progress, self.proxy.now())
                if relay.begun:
                    return await self._lost(relay, lost.reason)
                # The target closed an idle connection while the request was under way, which is no fault. A peer may
                # be down altogether, though, and to find out takes seconds.
                if not lost.stale or (relay.kind is PEER and self.has_other(queue, at_once=False)):
                    raise AttemptFailed(lost.reason) from None
                connection = None
        return self._whole_response(relay, relay.whole) if relay.repair is None else self._stream_end(relay)

    def _whole_response(self, relay: Relay, whole: WholeResponse | None) -> _End:
        """The end of a request whose target sent a response that is not a stream."""
        assert whole is not None
        request = self.request
        if not 200 <= whole.status < 300:
            error = self._translated(whole.status, whole)
            if error.worker_lost and relay.queue.offer.split:
                raise AttemptFailed(WORKER_LOST)
            if error.retryable(relay.kind):
                raise TargetRefused(error)
            if error.code == REQUEST_CRASHED and relay.kind is PEER:
                self.proxy.crashed.reported(request.digest, self.proxy.now())
            raise RequestFailed.with_error(error)
        if self.streams:
            # A client would look for events in it, find none, and take that for an empty response.
            message = "The model server did not return a stream although one was requested."
            raise RequestFailed(502, "upstream_error", message)
        body = request.whole_response(whole.body, relay.kind, is_json=whole.is_json, wall=self.proxy.wall)
        if body is None:
            raise RequestFailed.with_error(self._translated(502, whole))
        if isinstance(body, Refusal):
            raise RequestFailed.by(body)
        relay.first_byte()
        self._count_tokens(whole_usage(self.api, body))
        return _End(ANSWERED, whole.status, "", partial(self.writer.whole, whole.status, body))

    def _translated(self, status: int, whole: WholeResponse) -> UpstreamError:
        status, body = translate_error(self.api, status, whole.body, request_id=self.request.request_id)
        return UpstreamError(status, body, whole.retry_after)

    def _stream_end(self, relay: Relay) -> _End:
        """The end of a request whose target sent a stream; retried if that had nothing but an error."""
        repair, rest = relay.repair, relay.rest
        assert repair is not None
        if not repair.failed:
            if not relay.begun:
                relay.first_byte()
            return self._last_of_stream(rest, ANSWERED)
        if not relay.begun:
            if relay.kind is PEER:
                error = retryable_error_in(self.api, rest, self.request.request_id)
                if error is not None:
                    raise TargetRefused(error)
                if _CRASHED_MARK in rest:  # nothing but an error has arrived: no text of a model
                    self.proxy.crashed.reported(self.request.digest, self.proxy.now())
            if repair.worker_lost:
                raise AttemptFailed(WORKER_LOST)
        reason = error_message_in(rest) or "the stream ended with an error"
        return self._last_of_stream(rest, LOST if relay.begun else FAILED, reason)

    async def _lost(self, relay: Relay, reason: str) -> _End:
        """The end of a stream that was cut after it had begun. Why an engine ended is known a moment later."""
        worker_lost, queue, repair = False, relay.queue, relay.repair
        assert repair is not None
        if relay.kind is ENGINE and (route := await self._cause(queue)) is not None:
            reason = route.lost_reason or route.engine_failure or reason
            worker_lost = bool(route.lost_reason) and queue.offer.split
            if not route.lost_reason:
                self.proxy.died_of(self.request, queue)
        if worker_lost:
            message = worker_loss_message(self.model, reason)
        else:
            who = queue.name if relay.kind is PEER else f"The server of {self.model}"
            message = f"{who} was lost in the middle of the response: {reason.rstrip('.')}. Send the request again."
        return self._last_of_stream(repair.fail(UPSTREAM_LOST, message), LOST, reason)

    async def _cause(self, queue: TargetQueue) -> ModelRoute | None:
        """The model's route once the engine process of `queue` is known to have ended; None if it has not in time."""
        proxy = self.proxy
        since, timer = proxy.now(), proxy.loop.call_later(CAUSE_SECONDS, self.wake)
        proxy.waits(self, True)
        try:
            while queue.target in (route := self._find()[0]).targets:
                if proxy.now() - since > CAUSE_SECONDS - TIMER_SECONDS:
                    return None
                await self._changed()
            return route
        finally:
            timer.cancel()
            proxy.waits(self, False)

    def _last_of_stream(self, data: bytes, outcome: Outcome, error: str = "") -> _End:
        self._count_tokens(self.writer.usage(data))
        return _End(outcome, 200, error, partial(self.writer.end, data))

    def _error(self, failed: RequestFailed) -> _End:
        """The end of a request with an error: ours, or a target's."""
        error = failed.error(self.api, self.trace.request_id)
        if error.code == CONTEXT and self.model and not self.from_peer:
            error = self.proxy.auto.with_larger_contexts(error, self.request)
        if not self.model:
            headers = failed.headers + self._cors
            send = partial(self.connection.send, error.status, JSON, orjson.dumps(error.body), headers)
            return _End(REFUSED, error.status, error.message, send)
        relay, begun = self._relay, self.writer.streaming or self._fails_in_stream(error)
        outcome = FAILED if begun or error.status >= 500 else REFUSED
        if relay is not None and relay.begun:
            outcome = LOST
        repair = relay.repair if relay is not None else None
        if repair is None and begun and self.api is Api.RESPONSES:
            repair = self.request.stream_repair(self.proxy.wall(), None, split=False)
        write = partial(self.writer.refuse, error, failed.headers, repair, in_stream=begun)
        return _End(outcome, 200 if begun else error.status, error.message, write)

    def _fails_in_stream(self, error: UpstreamError) -> bool:
        """Whether an error that could be a 400 is the end of a stream: OpenAI says so that a prompt is too long, and
        Codex compacts its conversation on this event alone."""
        return error.code == CONTEXT and self.api is Api.RESPONSES and self.streams and not self.from_peer

    def _abandon(self) -> None:
        """The caller went away: nothing can be written any more."""
        relay = self._relay
        if relay is not None and relay.sent and relay.kind is ENGINE:
            relay.queue.suspects.abandon(self.request.digest, self.proxy.now())
        self._release(Outcome.ABANDONED, 499, "the caller closed the connection")

    def _release(self, outcome: Outcome, status: int, error: str) -> None:
        """Return all that the request holds, and count and log it; the caller's last bytes are written after this."""
        trace, relay = self.trace, self._relay
        trace.outcome, trace.status, trace.error = outcome, status, error[:MAX_TEXT] if error else ""
        trace.ended = self.proxy.now()
        try:
            if relay is not None:
                self._close_attempt(outcome, error)
            self.proxy.recorder.ended(trace, self.kind, from_peer=self.from_peer)
        finally:
            if self._on_end is not None:
                self._on_end()

    # -- its attempts, and its place in a queue

    def _open_attempt(self, queue: TargetQueue, late: int) -> Relay:
        now, kind = self.proxy.now(), queue.target.kind
        self.kind = kind
        node = queue.target.address[:10] if kind is PEER else self.proxy.table.node
        attempt = AttemptTrace(queue.label, node, now)
        self.trace.attempts.append(attempt)
        self.writer.use(queue)
        relay = self._relay = Relay(self, queue, attempt, late)
        queue.users[relay] = None
        return relay

    def _close_attempt(self, outcome: Outcome, error: str) -> float:
        """End the attempt: drop its connection and return its slot. Returns when the target was heard last."""
        relay, self._relay, now = self._relay, None, self.proxy.now()
        assert relay is not None
        relay.queue.users.pop(relay, None)
        try:
            relay.close()
        finally:
            self._return_slot(relay.queue, now - relay.started)
        attempt = relay.trace
        attempt.ended, attempt.outcome, attempt.error = now, outcome, error[:MAX_TEXT] if error else ""
        self.proxy.recorder.attempt_ended(self.trace, attempt, relay.kind)
        return relay.heard

    def _return_slot(self, queue: TargetQueue, seconds: float) -> None:
        if self._selection.needs_slot:
            queue.release(seconds, self.request.tasks, self._selection.rank)

    def _stop_waiting(self) -> None:
        """Leave the queue; a slot that came at the moment when the request ended is returned."""
        self.proxy.waits(self, False)
        self._leave_queue()
        granted, self._granted = self._granted, None
        if granted is not None:
            self._return_slot(granted, granted.mean_seconds)

    def _leave_queue(self) -> None:
        queued, self._queued = self._queued, None
        if queued is not None:
            queued.leave(self)

    async def _changed(self) -> None:
        """Wait until `wake` is called."""
        change: Signal[None] = Signal()
        self._change = change
        await change

    def _find(self) -> RoutedTargets:
        table = self.proxy.table
        return table.find_local(self.model) if self.from_peer else table.find(self.model)

    def _refuse_if_died_of_it(self, route: ModelRoute) -> None:
        """Raise RequestFailed if the suspected engine has died and this request seems to be the cause.

        A request that was in flight when an engine died is tried once more.
        """
        queue = self._suspected
        if queue is None or queue.target in route.targets:
            return
        self._suspected = None
        if route.lost_reason:  # stopped on purpose: a worker of its split was lost
            return
        self._deaths += 1
        if self.proxy.died_of(self.request, queue):
            raise RequestFailed(400, REQUEST_CRASHED, REFUSED_MESSAGE)
        if self._deaths >= MAX_DEATHS:
            message = f"The engine of {self.model} stopped {self._deaths} times while it processed this request."
            raise RequestFailed(502, REQUEST_CRASHED, message, "retry-after: 30\r\n")

    def note_failure(self, queue: TargetQueue, *, whole: bool) -> None:
        """An attempt failed: the model rests there; with `whole`, all models of that peer or backend do."""
        self.proxy.table.failed(queue, self.model, self.proxy.now(), whole=whole)

    def is_routed(self, queue: TargetQueue) -> bool:
        """Whether the core still names the target of `queue`."""
        return queue in self._find()[1]

    def has_other(self, queue: TargetQueue, *, at_once: bool = True) -> bool:
        """Whether there is another target than `queue`, that could begin `at_once` or in its turn."""
        return self._selection.has_other(self._find()[1], queue, self.proxy.now(), at_once=at_once)

    def first_byte(self, relay: Relay, now: float) -> None:
        """The response of the attempt begins."""
        if self.trace.first_byte is None:
            self.trace.first_byte = now
        relay.trace.first_byte = now
        self._selection.answered(relay.queue, now)

    def _count_tokens(self, usage: TokenUsage) -> None:
        trace = self.trace
        trace.prompt_tokens, trace.cached_tokens, trace.completion_tokens = usage.prompt, usage.cached, usage.completion

    # -- what is told to it: by a target's queue, the core, the caller's connection

    def slot_granted(self, queue: TargetQueue) -> None:
        """This request is the first in the queue, and has a slot."""
        self._queued, self._granted = None, queue
        self.wake()

    def wake(self) -> None:
        """Something has changed while this request waits. It goes on from the event loop: not within another's end."""
        change, self._change = self._change, None
        if change is not None:
            self.proxy.loop.call_soon(change.set, None)

    def caller_gone(self) -> None:
        """The caller closed the connection."""
        self.task.cancel()

    def stopping(self) -> None:
        """The gateway is stopping."""
        self._stopping = True
        self.caller_gone()

    def caller_paused(self, paused: bool) -> None:
        """Read from the target only as fast as the caller reads from us."""
        if self._relay is not None:
            self._relay.caller_paused(paused)

    def tick(self, now: float) -> None:
        """Called about once a second: timeouts and keep-alives."""
        relay = self._relay
        if not self.model:
            return
        if relay is not None:
            relay.tick(now)
            if relay.ended:
                return
        if (self.streams or self.from_peer) and self.writer.is_silent(now):
            ahead = "" if self._queued is None else f", {self._queued.position(self)} ahead"
            self.writer.keep_alive(self.message + ahead, now)
