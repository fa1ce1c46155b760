"""One API request: from its caller to a target and back, with retries.

Invariants: a request ends exactly once: with a response, with a typed error in the shape of its API, or because the
caller went away. Until part of a response has been forwarded, another target (or the model's next engine process) is
tried; after that the stream ends with a typed error. A streaming caller gets data or a comment at least every
`timeouts.SILENCE_SECONDS`. Everything here is a callback; only opening a connection waits. `target_selection` chooses
the target.
"""

from __future__ import annotations

from meshllm.core.routing.routes import ModelRoute, TargetKind
from meshllm.web.gateway import timeouts
from meshllm.web.gateway.api_request import ApiRequest, WholeResponse
from meshllm.web.gateway.crashed_requests import REFUSED_MESSAGE, REQUEST_CRASHED
from meshllm.web.gateway.request_host import RequestHost, RequestPhase
from meshllm.web.gateway.request_log import LOCAL_CALLER, MAX_TEXT, AttemptTrace, Outcome, RequestTrace
from meshllm.web.gateway.response_writer import ResponseWriter
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_selection import SelectionAction, TargetSelection
from meshllm.web.gateway.timeouts import Overdue
from meshllm.web.gateway.upstream_errors import (
    UpstreamError,
    error_message_in,
    retry_after,
    retryable_error_in,
)
from meshllm.web.gateway.usage import TokenUsage, whole_usage
from meshllm.web.http.client import UpstreamConnection, UpstreamPool
from meshllm.web.http.server import Connection
from meshllm.wire.api.errors import error_body, translate_error
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.stream_repair import StreamRepair
from meshllm.wire.api.worker_loss import UPSTREAM_LOST, WORKER_LOST, worker_loss_message

# How long a request avoids a target that failed it.
AVOID_SECONDS = 1.0
MAX_ATTEMPTS = 4
_CRASHED_MARK = f'"{REQUEST_CRASHED}"'.encode()
# Engine processes that may end while they process a request: then it is not tried again, here or at another host.
MAX_DEATHS = 2
# How long a stream whose engine closed the connection waits for the cause.
CAUSE_SECONDS = 1.0
# A request leaves at most this many hosts because they are slow.
MAX_LATE = 2
# The largest response that is not a stream: embeddings of a large batch are some 10 MB.
MAX_RESPONSE_BYTES = 256 << 20


class ProxiedRequest:
    """A valid request for a model. `start` it once."""

    def __init__(
        self,
        host: RequestHost,
        connection: Connection,
        request: ApiRequest,
        trace: RequestTrace,
        *,
        cors: str = "",
        from_peer: bool = False,
    ) -> None:
        """`from_peer`: sent by a peer's gateway, so only targets of this node may answer it."""
        self._host = host
        self._connection = connection
        self._request = request
        self.trace = trace
        self.from_peer = from_peer
        self._selection = TargetSelection(request, host.affinity, from_peer=from_peer)
        self.api = request.api
        self.model = trace.model
        self.streams = trace.stream
        self.phase = RequestPhase.WAITING
        self.began = trace.started
        self.message = ""
        # The target in use, and the target whose slot is held; counting tokens holds no slot.
        self._target: TargetQueue | None = None
        self._slot: TargetQueue | None = None
        self._queued: TargetQueue | None = None
        self._waiting_since: float | None = None
        self._attempt: AttemptTrace | None = None
        self._slot_taken_at = self._sent_at = 0.0
        self._connecting: UpstreamPool | None = None
        self._upstream: UpstreamConnection | None = None
        self._repair: StreamRepair | None = None
        self._whole: WholeResponse | None = None
        self._registered = False  # with `host.waits`
        self._failures = self._late = self._deaths = 0
        # The engine that closed the connection while it processed this request: it may have died.
        self._lost_engine: TargetQueue | None = None
        self._loss = ""
        self.kind: TargetKind | None = None
        local = trace.caller == LOCAL_CALLER
        self._writer = ResponseWriter(connection, request, cors, self.began, local=local, from_peer=from_peer)
        self._last_upstream = self.began

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.phase is RequestPhase.DONE

    # -- selecting a target

    def start(self) -> None:
        """Begin."""
        self._select()

    def reconsider(self) -> None:
        """Something changed while this request was waiting."""
        if self.phase is RequestPhase.WAITING:
            self._select()
        elif self.phase is RequestPhase.LOST and self._target is not None:
            route = self._find()[0]
            if self._target.target not in route.targets:
                self._lost(self._loss, route)

    def _find(self) -> tuple[ModelRoute, list[TargetQueue]]:
        return self._host.find(self.model, local_only=self.from_peer)

    def _select(self) -> None:
        route, queues = self._host.find(self.model, local_only=self.from_peer)
        if self._queued is not None and self._queued not in queues:
            self._leave_queue()
        if self._lost_engine is not None and self._died_again(route):
            return
        step = self._selection.decide(route, queues, self, self._queued, self._host.now())
        match step.action:
            case SelectionAction.SEND:
                assert step.queue is not None
                if self._queued is not None:
                    self._leave_queue()
                self._registered = False
                self._host.waits(self, False)
                self._use(step.queue)
            case SelectionAction.QUEUED:
                if step.queue is not self._queued:
                    self._leave_queue()
                    self._queued = step.queue
                    self._wait(step.message)
            case SelectionAction.WAIT:
                self._leave_queue()
                self._wait(step.message)
            case SelectionAction.FORWARD_ERROR:
                assert step.error is not None
                self._send_error(step.error)
            case SelectionAction.FAIL:
                self._fail(step.status, step.code, step.message, step.headers)

    def _leave_queue(self) -> None:
        queued, self._queued = self._queued, None
        if queued is not None:
            queued.leave(self)

    def _wait(self, message: str) -> None:
        self.message = message
        if self._waiting_since is None:
            self._waiting_since = self._host.now()
        self._registered = True
        self._host.waits(self, True)

    def _no_longer_waiting(self) -> None:
        self._registered = False
        self._host.waits(self, False)

    def slot_granted(self, queue: TargetQueue) -> None:
        """This request is the first in the queue, and has a slot."""
        self._queued = None
        self._no_longer_waiting()
        self._use(queue)

    def _use(self, queue: TargetQueue) -> None:
        self._target = queue
        self._slot = queue if self._selection.needs_slot else None
        self.kind = queue.target.kind
        self._writer.use(queue)
        now = self._slot_taken_at = self._last_upstream = self._host.now()
        if self._waiting_since is not None or self.trace.queue_seconds is None:
            self._stop_waiting(now)
        node = queue.target.address[:10] if self.kind is TargetKind.PEER else self._host.node
        self._attempt = AttemptTrace(queue.label, node, now)
        self.trace.attempts.append(self._attempt)
        queue.users[self] = None
        if self.kind is TargetKind.ENGINE and (refusal := self._request.prepare(queue.offer.template)) is not None:
            self._fail(refusal.status, refusal.code, refusal.message, param=refusal.param)
            return
        connection = queue.pool.take()
        if connection is not None:
            self._send(connection)
        else:
            self._connect(queue.pool)

    def _stop_waiting(self, now: float) -> None:
        waited = 0.0 if self._waiting_since is None else now - self._waiting_since
        self._waiting_since = None
        self.trace.queue_seconds = (self.trace.queue_seconds or 0.0) + waited

    def _connect(self, pool: UpstreamPool) -> None:
        self.phase = RequestPhase.CONNECTING
        self._connecting = pool
        self._host.connect(self, pool)

    def connected(self, connection: UpstreamConnection) -> None:
        """A connection is open."""
        if connection.pool is not self._connecting:
            connection.drop()  # the request has gone on without it
            return
        self._lost_engine = None
        self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connecting = None
        self.phase = RequestPhase.SENT
        self._upstream = connection
        now = self._sent_at = self._last_upstream = self._host.now()
        if self._attempt is not None:
            self._attempt.connected = now
        self.message = "processing the prompt"
        connection.send(self._request.wire(connection.pool, self._host.key_for(connection.pool.target)), self)

    def not_connected(self, pool: UpstreamPool, reason: str) -> None:
        """Connecting to the target failed."""
        if pool is self._connecting:
            self._retry(reason, whole=True)

    def target_down(self) -> None:
        """The target's node is believed to be dead: if no response has begun, try another target, if there is one."""
        if not self._begun and self.phase is not RequestPhase.WAITING and self._has_other(at_once=False):
            self._retry("the peer is down", whole=True)

    @property
    def _begun(self) -> bool:
        """Whether part of a response, more than comments, has been forwarded: then no other target can take over."""
        return self.over or (self._repair is not None and self._repair.started)

    def _has_other(self, *, at_once: bool = True) -> bool:
        """Whether there is another target, that could begin `at_once` or in its turn."""
        _, queues = self._find()
        target = self._target
        return target is not None and self._selection.has_other(queues, target, self._host.now(), at_once=at_once)

    def _retry(self, reason: str, *, whole: bool = False) -> None:
        """An attempt failed before a response began. `whole`: the peer or backend failed, not only this model there."""
        target, now = self._release(Outcome.FAILED, reason), self._host.now()
        assert target is not None
        self._host.failed(target, self.model, now, whole=whole)
        self._selection.avoid(target, now + AVOID_SECONDS, reason, whole=whole, silent_since=self._last_upstream)
        self._failures += 1
        if self._failures >= MAX_ATTEMPTS:
            message = f"{self.model}: {self._failures} attempts failed, the last one at {target.name}: {reason}."
            self._fail(502, UPSTREAM_LOST, message, "retry-after: 5\r\n")
        else:
            self._start_over()

    def _suspect_engine(self) -> None:
        """The engine closed the connection. Whether its process has died is known a moment later."""
        if self.kind is TargetKind.ENGINE and (target := self._target) is not None:
            self._lost_engine = target
            target.note_loss()

    def _died_again(self, route: ModelRoute) -> bool:
        """Whether the suspected engine has died, and with it the last attempt: then the request ends with an error.

        A request that was in flight when an engine died is tried once more; one that seems to be the cause is refused.
        """
        lost = self._lost_engine
        if lost is None or lost.target in route.targets:
            return False
        self._lost_engine = None
        if route.lost_reason:  # stopped on purpose: a worker of its split was lost
            return False
        self._deaths += 1
        if self._host.engine_died(self._request.body, alone=lost.lost_alone):
            self._fail(400, REQUEST_CRASHED, REFUSED_MESSAGE)
            return True
        if self._deaths >= MAX_DEATHS:
            message = f"The engine of {self.model} stopped {self._deaths} times while it processed this request."
            self._fail(502, REQUEST_CRASHED, message, "retry-after: 30\r\n")
            return True
        return False

    def _start_over(self) -> None:
        self._repair = None
        self.phase = RequestPhase.WAITING
        self._select()

    def _release(self, outcome: Outcome, error: str = "", now: float | None = None) -> TargetQueue | None:
        """End the attempt: drop its connection and return its slot. Returns its target."""
        self._connecting = None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()
        target, self._target = self._target, None
        slot, self._slot = self._slot, None
        attempt, self._attempt = self._attempt, None
        now = self._host.now() if now is None else now
        if attempt is not None:
            attempt.ended, attempt.outcome, attempt.error = now, outcome, error[:MAX_TEXT]
            self._host.attempt_ended(self, attempt)
        if target is not None:
            target.users.pop(self, None)
        if slot is not None:
            slot.release(now - self._slot_taken_at, self._request.tasks, self._selection.rank)
        return target

    # -- the target's response

    def upstream_head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        """The response's head."""
        if self._connection.paused and self._upstream is not None:
            self._upstream.pause()
        if self.streams and status == 200 and content_type.startswith("text/event-stream"):
            self.phase = RequestPhase.STREAMING
            split = self._target is not None and self._target.offer.split
            self._repair = self._request.stream_repair(self._host.wall(), self.kind, split=split)
        else:
            self.phase = RequestPhase.BUFFERING
            self._whole = WholeResponse(status, content_type.startswith("application/json"), retry_after(headers))

    def upstream_alive(self) -> None:
        """The target is still working."""
        self._last_upstream = self._host.now()

    def upstream_data(self, data: bytes) -> None:
        """More of the response's body."""
        if self._repair is not None:
            self._forward(self._repair, data)
            return
        self._last_upstream = self._host.now()
        assert self._whole is not None
        self._whole.add(data)
        if self._whole.size > MAX_RESPONSE_BYTES:
            self._fail(502, "upstream_error", f"The response is larger than {MAX_RESPONSE_BYTES >> 20} MiB.")

    def _forward(self, repair: StreamRepair, data: bytes) -> None:
        if repair.complete:
            # Data after the end of the stream is dropped, and need never stop.
            self._end_stream(b"", Outcome.FAILED if repair.failed else Outcome.ANSWERED)
            return
        self._last_upstream = self._host.now()
        begun = repair.started
        forwarded = repair.feed(data)
        if repair.failed:
            self._stream_failed(repair, forwarded, begun)
            return
        if repair.started and not begun:
            self._first_byte()
        self._writer.forward(forwarded, self._last_upstream)

    def _stream_failed(self, repair: StreamRepair, forwarded: bytes, begun: bool) -> None:
        """A stream ended with an error; retry if nothing else was forwarded and another attempt may succeed."""
        error = None
        if not begun and self.kind is TargetKind.PEER:
            error = retryable_error_in(self.api, forwarded, self._request.request_id)
            if error is None and _CRASHED_MARK in forwarded:  # nothing but an error has arrived: no text of a model
                self._host.host_crashed(self._request.body)
        if repair.worker_lost and not begun:
            self._retry(WORKER_LOST)
        elif error is not None:
            self._refused(error)
        else:
            outcome = Outcome.LOST if begun else Outcome.FAILED
            error_text = error_message_in(forwarded) or "the stream ended with an error"
            self._end_stream(forwarded, outcome, error_text)

    def _refused(self, error: UpstreamError) -> None:
        """A host refused the request, and another host may not."""
        target, self._repair = self._release(Outcome.REFUSED, f"{error.code or error.status}: {error.message}"), None
        assert target is not None
        if self._selection.refused(target, error, self._host.now()):
            self._start_over()
        else:
            message = f"{self.model} is temporarily unavailable. Retry."
            self._fail(503, "model_unavailable", message, "retry-after: 5\r\n")

    def _first_byte(self) -> None:
        now, target, attempt = self._last_upstream, self._target, self._attempt
        if self.trace.first_byte is None:
            self.trace.first_byte = now
        if attempt is not None and attempt.first_byte is None:
            attempt.first_byte = now
        if target is not None:
            if self.streams:
                target.first_byte.add(now - self._sent_at, self._request.estimated_tokens)
            self._selection.answered(target, now)

    def upstream_end(self, data: bytes) -> None:
        """The response is complete."""
        self._upstream = None
        self._last_upstream = self._host.now()
        if self._repair is None:
            assert self._whole is not None
            self._whole.add(data)
            self._whole_response(self._whole)
            return
        repair, begun = self._repair, self._repair.started
        rest = repair.feed(data) + repair.finish()
        if repair.failed:
            self._stream_failed(repair, rest, begun)
            return
        if not begun:
            self._first_byte()
        self._end_stream(rest, Outcome.ANSWERED)

    def upstream_lost(self, reason: str, *, stale: bool) -> None:
        """The connection ended before the response was complete, or the response is malformed."""
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        if self._repair is not None and self._repair.complete:
            self._end_stream(b"", Outcome.FAILED if self._repair.failed else Outcome.ANSWERED)
        elif stale and not (self.kind is TargetKind.PEER and self._has_other(at_once=False)):
            # The target closed an idle connection while the request was under way, which is no fault. A peer may be
            # down altogether, though, and to find out takes seconds.
            self._suspect_engine()
            self._connect(upstream.pool)
        elif not self._begun:
            self._suspect_engine()
            self._retry(reason)
        else:
            self._connection_lost(reason)

    def upstream_excessive(self, reason: str) -> None:
        """The response was cut because of its size; not asked again: each attempt would cost as much."""
        target = self._target
        if self._begun or target is None or (self._repair is not None and self._repair.complete):
            self.upstream_lost(reason, stale=False)
            return
        self._release(Outcome.FAILED, reason)
        self._host.failed(target, self.model, self._host.now(), whole=False)
        self._fail(502, UPSTREAM_LOST, f"The response of {target.name} for {self.model} was cut: {reason}.")

    def _connection_lost(self, reason: str) -> None:
        """The connection was lost after the first byte. Why an engine process ended is known a moment later."""
        route = self._find()[0]
        if self.kind is TargetKind.ENGINE and self._target is not None and self._target.target in route.targets:
            self.phase, self._loss, self._last_upstream = RequestPhase.LOST, reason, self._host.now()
            self._registered = True
            self._host.waits(self, True)
        else:
            self._lost(reason, route)

    def _lost(self, reason: str, route: ModelRoute | None = None) -> None:
        """End a stream that has begun. `route` is the model's now: it may say why the engine process here ended."""
        assert self._repair is not None
        if route is not None and self.kind is TargetKind.ENGINE:
            reason = route.lost_reason or route.engine_failure or reason
            worker_lost = bool(route.lost_reason) and self._target is not None and self._target.offer.split
            if self._target is not None and self._target.target not in route.targets and not route.lost_reason:
                self._target.note_loss()
                self._host.engine_died(self._request.body, alone=self._target.lost_alone)
        else:
            worker_lost = False
        peer = self._target if self.kind is TargetKind.PEER else None
        who = peer.name if peer is not None else f"The server of {self.model}"
        message = (
            worker_loss_message(self.model, reason)
            if worker_lost
            else f"{who} was lost in the middle of the response: {reason.rstrip('.')}. Send the request again."
        )
        self._end_stream(self._repair.fail(UPSTREAM_LOST, message), Outcome.LOST, reason)

    def _whole_response(self, whole: WholeResponse) -> None:
        if not 200 <= whole.status < 300:
            error = self._translated(whole.status, whole)
            if self._target is not None and self._target.offer.split and error.worker_lost:
                self._retry(WORKER_LOST)
            elif self.kind is not None and error.retryable(self.kind):
                self._refused(error)
            else:
                if error.code == REQUEST_CRASHED and self.kind is TargetKind.PEER:
                    self._host.host_crashed(self._request.body)
                self._send_error(error)
            return
        if self.streams:
            # A client would look for events in it, find none, and take that for an empty response.
            self._fail(502, "upstream_error", "The model server did not return a stream although one was requested.")
            return
        body = self._request.whole_response(whole.body, self.kind, is_json=whole.is_json, wall=self._host.wall)
        if isinstance(body, Refusal):
            self._fail(body.status, body.code, body.message, param=body.param)
            return
        if body is None:
            self._send_error(self._translated(502, whole))
            return
        self._first_byte()
        self._count_tokens(whole_usage(self.api, body))
        self._finish(Outcome.ANSWERED, whole.status)
        self._writer.whole(whole.status, body)

    def _translated(self, status: int, whole: WholeResponse) -> UpstreamError:
        status, body = translate_error(self.api, status, whole.body, request_id=self._request.request_id)
        return UpstreamError(status, body, whole.retry_after)

    # -- the end

    def _end_stream(self, data: bytes, outcome: Outcome, error: str = "") -> None:
        self._count_tokens(self._writer.usage(data))
        self._finish(outcome, 200, error)
        self._writer.end(data)

    def _count_tokens(self, usage: TokenUsage) -> None:
        trace = self.trace
        trace.prompt_tokens, trace.cached_tokens, trace.completion_tokens = usage.prompt, usage.cached, usage.completion

    def _fail(self, status: int, code: str, message: str, headers: str = "", *, param: str | None = None) -> None:
        body = error_body(self.api, status, code, message, param=param, request_id=self._request.request_id)
        self._send_error(UpstreamError(status, body), headers)

    def _send_error(self, error: UpstreamError, headers: str = "") -> None:
        """End with an error: ours, or a target's."""
        begun = self._writer.streaming
        outcome = Outcome.FAILED if begun or error.status >= 500 else Outcome.REFUSED
        if self._begun:
            outcome = Outcome.LOST
        self._finish(outcome, 200 if begun else error.status, error.message)
        self._writer.refuse(error, headers, self._repair)

    def _finish(self, outcome: Outcome, status: int, error: str = "") -> None:
        """Release everything; the caller's last bytes are written after this."""
        self.phase = RequestPhase.DONE
        trace = self.trace
        trace.outcome, trace.status, trace.error = outcome, status, error[:MAX_TEXT]
        now = trace.ended = self._host.now()
        self._release(outcome, error, now)
        if self._registered:
            self._leave_queue()
            self._no_longer_waiting()
        if self._waiting_since is not None:
            self._stop_waiting(now)
        self._host.ended(self)

    # -- the caller's connection, and time

    def stopping(self) -> None:
        """The gateway is stopping."""
        if self.phase is not RequestPhase.DONE:
            self._fail(503, "stopping", "This node is stopping.", "retry-after: 10\r\n")

    def caller_gone(self) -> None:
        """The caller closed the connection."""
        if self.phase is not RequestPhase.DONE:
            self._finish(Outcome.ABANDONED, 499, "the caller closed the connection")

    def caller_paused(self, paused: bool) -> None:
        """Read from the target only as fast as the caller reads from us."""
        if self._upstream is not None and self.phase in (RequestPhase.STREAMING, RequestPhase.BUFFERING):
            self._last_upstream = self._host.now()  # a paused target cannot send: its silence means nothing
            self._upstream.pause() if paused else self._upstream.resume()

    def tick(self, now: float) -> None:
        """Called about once a second: timeouts and keep-alives."""
        if self.phase is RequestPhase.DONE:
            return
        if self.phase is RequestPhase.WAITING:
            self.reconsider()
            waited = timeouts.waited_too_long(now - self.began, streams=self.streams)
            if self.phase is RequestPhase.WAITING and waited:
                message = f"{self.model} is not ready after {now - self.began:.0f} s: {self.message}. Retry later."
                self._fail(503, "model_not_ready", message, "retry-after: 10\r\n")
        elif self.phase is RequestPhase.LOST:
            if now - self._last_upstream >= CAUSE_SECONDS:
                self._lost(self._loss)
        elif self._target is not None and not self._connection.paused:
            self._check_timeouts(self._target, now)
        if not self.over and now - self._writer.last >= timeouts.SILENCE_SECONDS and (self.streams or self.from_peer):
            message = self.message
            if self._queued is not None:
                message += f", {self._queued.position(self)} ahead"
            self._writer.keep_alive(message, now)

    def _check_timeouts(self, target: TargetQueue, now: float) -> None:
        """Act on a target that has taken too long."""
        kind, silent, repair = target.target.kind, now - self._last_upstream, self._repair
        connecting, complete = self.phase is RequestPhase.CONNECTING, repair is not None and repair.complete
        doubted = kind is TargetKind.PEER and silent > timeouts.SILENCE_SECONDS and target not in self._find()[1]
        match timeouts.overdue(kind, silent, connecting=connecting, complete=complete, doubted=doubted):
            case Overdue.CLOSE:
                self._end_stream(b"", Outcome.FAILED if repair is not None and repair.failed else Outcome.ANSWERED)
            case Overdue.CONNECT if self._has_other():
                self._retry(f"no connection within {silent:.0f} s", whole=True)
            case Overdue.SEND if kind is TargetKind.PEER:
                reason = f"no data for {silent:.0f} s (timeout)"
                self._lost(reason) if self._begun else self._retry(reason)
            case Overdue.SEND:
                message = f"The server of {self.model} sent no data for {silent:.0f} s (timeout)."
                self._fail(504, "upstream_timeout", message)
            case None if kind is not TargetKind.ENGINE and not connecting:
                self._check_first_byte(target, now)

    def _check_first_byte(self, target: TargetQueue, now: float) -> None:
        """Try another target if this one is too slow to begin."""
        # A response that is not a stream has its first byte at its end: no estimate tells slow from dead.
        if self.streams and not self._begun and self._late < MAX_LATE:
            limit = target.first_byte.deadline(self._request.estimated_tokens, self._late)
            if now - self._sent_at > limit and self._failures < MAX_ATTEMPTS - 1 and self._has_other():
                self._late += 1
                self._retry(f"no first byte within {limit:.0f} s (timeout)")
