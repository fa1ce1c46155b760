"""One request's way from its caller to a target and back.

Law: an exchange ends exactly once: with an answer, with a typed error in the caller's own API shape, or because the
caller went away. Until something of an answer has been passed on, another target, or the same model's next process, is
tried; afterwards the stream ends with a typed error. A caller that streams hears at least a comment within
`SILENCE_SECONDS`, whatever happens. Everything here is a callback and nothing waits, except for making a connection:
that is what keeps the added time to the first byte low.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

import orjson

from meshllm.core import routing
from meshllm.core.routing import Route, Standing, Target, TargetKind
from meshllm.web.admission import TargetDesk
from meshllm.web.http1 import Connection
from meshllm.web.inquiry import Inquiry
from meshllm.web.upstream import UpstreamConnection, UpstreamPool
from meshllm.wire.api_errors import error_body, error_event, translate_error
from meshllm.wire.apis import Api
from meshllm.wire.repair import StreamRepair
from meshllm.wire.sse import comment, encode_event

# A streaming caller never hears nothing for longer than this (plus a second).
SILENCE_SECONDS = 5.0
# How long a caller waits for a model that is on its way. One that streams hears comments meanwhile; one that does not
# would wait in silence, and gets a 503 with Retry-After instead, which the SDKs act upon, before they give up (600 s).
WAIT_STREAMING_SECONDS = 3600.0
WAIT_SILENT_SECONDS = 300.0
# A target that failed a request is left alone for so long by that request.
AVOID_SECONDS = 1.0
MAX_ATTEMPTS = 4
# An engine process that hangs is found out by its supervisor; a backend is given up after this long without a byte.
BACKEND_SILENCE_SECONDS = 600.0
# A stream that is complete ends even if its target forgets to hang up.
LINGER_SECONDS = 2.0
# The largest answer that is not a stream: embeddings of a big batch are some 10 MB.
MAX_ANSWER_BYTES = 256 << 20
# What Anthropic's clients know as a sign of life; every API's clients skip the comment that goes with it.
PING = encode_event({"type": "ping"}, "ping")
STREAM_HEADERS = "cache-control: no-cache\r\nx-accel-buffering: no\r\n"


class Phase(Enum):
    """Where an exchange is."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    ASKING = "asking"
    BUFFERING = "buffering"
    STREAMING = "streaming"
    DONE = "done"


class Hall(Protocol):
    """What an exchange needs of the gateway it belongs to."""

    @property
    def now(self) -> Callable[[], float]:
        """The clock: seconds, monotonic."""

    def wall(self) -> int:
        """Seconds since the epoch, for timestamps that callers see."""

    def find(self, model: str) -> tuple[Route, list[TargetDesk]]:
        """Who can answer for `model` now, and the desks of its targets, best first."""

    def key_for(self, target: Target) -> str | None:
        """The key that a backend wants of us."""

    def connect(self, exchange: Exchange, pool: UpstreamPool) -> None:
        """Make a connection; leads to `exchange.connected` or `exchange.not_connected`."""

    def waits(self, exchange: Exchange, waiting: bool) -> None:
        """`exchange` wants to `reconsider` when something changes (True), or no longer."""

    def ended(self, exchange: Exchange) -> None:
        """The exchange is over; its `outcome`, `status` and times stay readable."""


class Exchange:
    """A request with a model and a body that has been understood. `start` it once."""

    def __init__(
        self,
        hall: Hall,
        connection: Connection,
        inquiry: Inquiry,
        cors: str,
    ) -> None:
        self._hall = hall
        self._connection = connection
        self._inquiry = inquiry
        self._cors = cors
        self.api = inquiry.api
        self.model = inquiry.model
        self.streams = inquiry.streams
        self.phase = Phase.WAITING
        self.began = hall.now()
        self.first_byte_at: float | None = None
        self.status = 0
        self.outcome = ""
        self.words = ""
        self._desk: TargetDesk | None = None
        self._queued: TargetDesk | None = None
        self._taken_at = 0.0
        self._upstream: UpstreamConnection | None = None
        self._upstream_status = 0
        self._is_json = False
        self._repair: StreamRepair | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._attempts = 0
        self._avoid: dict[Target, float] = {}
        self._head_sent = False
        self._last_sent = self.began
        self._last_upstream = self.began

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.phase is Phase.DONE

    # -- finding somebody to ask

    def start(self) -> None:
        """Begin."""
        self._seek()

    def reconsider(self) -> None:
        """Something changed while this exchange was waiting."""
        if self.phase is Phase.WAITING:
            self._seek()

    def _seek(self) -> None:
        route, desks = self._hall.find(self.model)
        if route.purpose is not None and self.api.purpose not in (None, route.purpose):
            self._fail(400, "wrong_purpose", routing.purpose_words(self.model, route.purpose))
            return
        if self._avoid:
            now = self._hall.now()
            desks = [desk for desk in desks if self._avoid.get(desk.target, 0.0) <= now]
        if self._queued is not None and self._queued not in desks:
            self._leave_queue()
        needs_slot = self.api not in (Api.COUNT_TOKENS, Api.INPUT_TOKENS)
        for desk in desks:
            if not needs_slot or desk.take():
                self._leave_queue()
                self._hall.waits(self, False)
                self._use(desk if needs_slot else None, desk)
                return
        if self._queued is not None:
            return  # still in its place, and nobody else is free
        if desks:
            self._queue(desks)
        elif route.targets:
            self._wait(f"{self.model} lost its server; waiting for it to come back")
        elif route.standing is Standing.COMING:
            self._wait(route.words)
        elif route.standing is Standing.FAILED:
            self._fail(503, "model_unavailable", route.words, "retry-after: 30\r\n")
        else:
            self._fail(404, "model_not_found", route.words)

    def _leave_queue(self) -> None:
        queued, self._queued = self._queued, None
        if queued is not None:
            queued.leave(self)

    def _wait(self, words: str) -> None:
        self.words = words
        self._hall.waits(self, True)

    def _queue(self, desks: list[TargetDesk]) -> None:
        desk = min(desks, key=lambda desk: desk.waiting / desk.limit)
        if not desk.join(self):
            message = (
                f"{self.model} is busy: {desk.active} requests at work and {desk.waiting} waiting. Try again soon."
            )
            self._fail(429, "overloaded", message, f"retry-after: {desk.retry_after()}\r\n")
            return
        self._queued = desk
        self._wait("waiting for a free slot")

    def granted(self, desk: TargetDesk) -> None:
        """The queue has come to this exchange."""
        self._queued = None
        self._hall.waits(self, False)
        self._use(desk, desk)

    def _use(self, slot: TargetDesk | None, desk: TargetDesk) -> None:
        self._desk = slot
        self._taken_at = self._last_upstream = self._hall.now()
        connection = desk.pool.take()
        if connection is not None:
            self.connected(connection)
        else:
            self.phase = Phase.CONNECTING
            self._hall.connect(self, desk.pool)

    def connected(self, connection: UpstreamConnection) -> None:
        """There is a connection to ask on."""
        if self.phase is Phase.DONE:
            connection.drop()
            return
        self.phase = Phase.ASKING
        self._upstream = connection
        self.words = "the model is reading the prompt"
        connection.send(self._inquiry.wire(connection.pool, self._hall.key_for(connection.pool.target)), self)

    def not_connected(self, target: Target, reason: str) -> None:
        """There is nobody."""
        if self.phase is not Phase.DONE:
            self._try_again(target, reason)

    def _try_again(self, target: Target, reason: str) -> None:
        """An attempt failed before anything of an answer was passed on."""
        self._let_go()
        self._attempts += 1
        if self._attempts >= MAX_ATTEMPTS:
            message = f"{self.model} could not be reached after {self._attempts} tries: {reason}."
            self._fail(502, "upstream_lost", message, "retry-after: 5\r\n")
            return
        self._repair = None
        self._parts, self._size = [], 0
        self._avoid[target] = self._hall.now() + AVOID_SECONDS
        self.phase = Phase.WAITING
        self._seek()

    def _let_go(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.release(self._hall.now() - self._taken_at)

    # -- hearing the answer

    def upstream_head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        """The target has begun to answer."""
        self._upstream_status = status
        if self._connection.paused and self._upstream is not None:
            self._upstream.pause()
        if self.streams and status == 200 and content_type.startswith("text/event-stream"):
            self.phase = Phase.STREAMING
            self._repair = self._inquiry.stream_repair(self._hall.wall())
        else:
            self.phase = Phase.BUFFERING
            self._is_json = content_type.startswith("application/json")

    def upstream_data(self, data: bytes) -> None:
        """More of the answer."""
        if self._repair is not None:
            self._stream_on(self._repair, data)
            return
        self._last_upstream = self._hall.now()
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            self._let_go()
            self._fail(502, "upstream_error", f"The answer is larger than {MAX_ANSWER_BYTES >> 20} MiB.")

    def _stream_on(self, repair: StreamRepair, data: bytes) -> None:
        if repair.complete:
            # It goes on after the end: nothing of that is wanted, and it may never stop.
            self._end_stream(b"", "failed" if repair.failed else "answered")
            return
        self._last_upstream = self._hall.now()
        passed = repair.feed(data)
        if repair.failed:
            self._end_stream(passed, "failed")
        else:
            self._pass_on(passed)

    def upstream_end(self, data: bytes) -> None:
        """The answer is complete."""
        self._upstream = None
        self._last_upstream = self._hall.now()
        if self._repair is None:
            self._parts.append(data)
            self._answer()
        else:
            rest = self._repair.feed(data) + self._repair.finish()
            self._end_stream(rest, "failed" if self._repair.failed else "answered")

    def upstream_lost(self, reason: str, *, stale: bool) -> None:
        """The target is gone, or does not speak as it should."""
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        if self._repair is not None and self._repair.complete:
            self._end_stream(b"", "failed" if self._repair.failed else "answered")
        elif stale:
            # It had hung up on an idle connection while our request was under way: not a fault of anybody.
            self.phase = Phase.CONNECTING
            self._hall.connect(self, upstream.pool)
        elif self._repair is None or not self._repair.started:
            self._try_again(upstream.pool.target, reason)
        else:
            message = f"{self.model} was lost in the middle of the answer: {reason}."
            self._end_stream(self._repair.fail("upstream_lost", message), "lost")

    def _answer(self) -> None:
        body, status = b"".join(self._parts), self._upstream_status
        if not 200 <= status < 300:
            status, error = translate_error(self.api, status, body)
            self._send_error(status, error, "")
            return
        if self.streams:
            # A client would look for events in it, find none, and call that an empty answer.
            self._fail(502, "upstream_error", "The model server did not stream although it was asked to.")
            return
        answer = self._inquiry.whole_answer(body, is_json=self._is_json, now=self._hall.wall())
        if answer is None:
            status, error = translate_error(self.api, 502, body)
            self._send_error(status, error, "")
            return
        self.first_byte_at = self._hall.now()
        self._finish("answered", status)
        self._connection.send(status, "application/json", answer, self._cors)

    # -- speaking to the caller

    def _pass_on(self, data: bytes) -> None:
        if not data:
            return
        if not self._head_sent:
            self._send_head()
        self._last_sent = self._last_upstream
        if self.first_byte_at is None:
            self.first_byte_at = self._last_sent
        self._connection.send_data(data)

    def _send_head(self) -> None:
        self._head_sent = True
        self._connection.start_stream(200, "text/event-stream; charset=utf-8", STREAM_HEADERS + self._cors)

    def _end_stream(self, data: bytes, outcome: str) -> None:
        if not self._head_sent:
            self._send_head()
        self._finish(outcome, 200)
        self._connection.end_stream(data)

    def _fail(self, status: int, code: str, message: str, headers: str = "") -> None:
        if not self._head_sent:
            self._send_error(status, error_body(self.api, status, code, message), headers)
        elif self._repair is not None:
            self._end_stream(self._repair.fail(code, message, status=status), "failed")
        else:
            self._end_stream(error_event(self.api, status, code, message), "failed")

    def _send_error(self, status: int, error: Mapping[str, Any], headers: str) -> None:
        if self._head_sent:
            told = error["error"]
            event = error_event(self.api, status, told.get("code"), told["message"])
            self._end_stream(event, "failed")
            return
        self._finish("refused" if status < 500 else "failed", status)
        self._connection.send(status, "application/json", orjson.dumps(error), headers + self._cors)

    def _finish(self, outcome: str, status: int) -> None:
        """Everything that was taken is given back; the caller still gets its last bytes after this."""
        self.phase = Phase.DONE
        self.outcome, self.status = outcome, status
        self._let_go()
        self._leave_queue()
        self._hall.waits(self, False)
        self._hall.ended(self)

    # -- the caller's connection, and time

    def stopping(self) -> None:
        """The gateway closes and waits no longer."""
        if self.phase is not Phase.DONE:
            self._let_go()
            self._fail(503, "stopping", "This node is stopping.", "retry-after: 10\r\n")

    def caller_gone(self) -> None:
        """Nobody wants the answer any more."""
        if self.phase is not Phase.DONE:
            self._finish("abandoned", 499)

    def caller_paused(self, paused: bool) -> None:
        """Read from the target only as fast as the caller reads from us."""
        if self._upstream is not None and self.phase in (Phase.STREAMING, Phase.BUFFERING):
            self._upstream.pause() if paused else self._upstream.resume()

    def tick(self, now: float) -> None:
        """About a second has passed: time limits, and a word to a caller who has heard nothing for long."""
        if self.phase is Phase.DONE:
            return
        if self.phase is Phase.WAITING:
            self.reconsider()
            limit = WAIT_STREAMING_SECONDS if self.streams else WAIT_SILENT_SECONDS
            if self.phase is Phase.WAITING and now - self.began > limit:
                message = f"{self.model} is not ready yet ({self.words}). Try again in a while."
                self._fail(503, "model_not_ready", message, "retry-after: 10\r\n")
        elif self._upstream is not None and not self._connection.paused:
            silent = now - self._last_upstream
            if self._repair is not None and self._repair.complete and silent > LINGER_SECONDS:
                self._end_stream(b"", "failed" if self._repair.failed else "answered")
            elif self._upstream.pool.target.kind is TargetKind.BACKEND and silent > BACKEND_SILENCE_SECONDS:
                self._let_go()
                self._fail(504, "upstream_timeout", f"{self.model} has not said anything for {silent:.0f} s.")
        if self.streams and not self.over and now - self._last_sent >= SILENCE_SECONDS:
            self._say_something(now)

    def _say_something(self, now: float) -> None:
        if self._connection.paused:
            return
        if not self._head_sent:
            self._send_head()
        words = self.words
        if self._queued is not None:
            words += f", {self._queued.place(self)} ahead"
        # A comment may only stand between two events: the repairer passes on whole events alone.
        self._connection.send_data(comment(words) + (PING if self.api is Api.MESSAGES else b""))
        self._last_sent = now
