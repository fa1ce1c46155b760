"""One request's way from its caller to a target and back.

Law: an exchange ends exactly once: with an answer, with a typed error in the caller's own API shape, or because the
caller went away. Until something of an answer has been passed on, another target, or the same model's next process, is
tried; afterwards the stream ends with a typed error. A caller that streams hears at least a comment within
`deadlines.SILENCE_SECONDS`, whatever happens. Everything here is a callback and nothing waits, except for making a
connection: that is what keeps the added time to the first byte low. Whom to ask is for `choice` to say.
"""

from __future__ import annotations

from meshllm.core.routing.routes import TargetKind
from meshllm.web.gateway import timeouts
from meshllm.web.gateway.api_request import ApiRequest, WholeResponse
from meshllm.web.gateway.hall import RequestHost, RequestPhase
from meshllm.web.gateway.response_writer import ResponseWriter
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.target_selection import SelectionAction, TargetSelection
from meshllm.web.gateway.timeouts import Overdue
from meshllm.web.gateway.upstream_errors import UpstreamError, refusal_in_stream, retry_after
from meshllm.web.http.client import UpstreamConnection, UpstreamPool
from meshllm.web.http.server import Connection
from meshllm.wire.api.errors import error_body, translate_error
from meshllm.wire.api.stream_repair import StreamRepair
from meshllm.wire.api.worker_loss import PART_LOST, UPSTREAM_LOST, loss_words

# A target that failed a request is left alone for so long by that request.
AVOID_SECONDS = 1.0
MAX_ATTEMPTS = 4
# So many hosts are left for being slow; the next one may take its time.
MAX_LATE = 2
# The largest answer that is not a stream: embeddings of a big batch are some 10 MB.
MAX_ANSWER_BYTES = 256 << 20


class ProxiedRequest:
    """A request with a model and a body that has been understood. `start` it once."""

    def __init__(
        self, hall: RequestHost, connection: Connection, inquiry: ApiRequest, cors: str, *, guest: bool = False
    ) -> None:
        """`guest`: asked by a peer's gateway, which knows better than to wait here for what is not served here."""
        self._hall = hall
        self._connection = connection
        self._inquiry = inquiry
        self._guest = guest
        self._choice = TargetSelection(inquiry, hall.stickiness, guest=guest)
        self.api = inquiry.api
        self.model = inquiry.model
        self.streams = inquiry.streams
        self.phase = RequestPhase.WAITING
        self.began = hall.now()
        self.first_byte_at: float | None = None
        self.status = 0
        self.outcome = self.words = ""
        # Whom this asks, and whose slot it holds; what counts tokens holds none.
        self._at: TargetQueue | None = None
        self._slot: TargetQueue | None = None
        self._queued: TargetQueue | None = None
        self._taken_at = self._asked_at = 0.0
        self._connecting: UpstreamPool | None = None
        self._upstream: UpstreamConnection | None = None
        self._repair: StreamRepair | None = None
        self._whole = WholeResponse()
        self._attempts = self._late = 0
        self.kind: TargetKind | None = None
        self._voice = ResponseWriter(connection, inquiry, cors, self.began, guest=guest)
        self._last_upstream = self.began

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.phase is RequestPhase.DONE

    def times(self) -> tuple[float, float | None]:
        """Seconds since its beginning: now, and at the first byte of an answer (None: there was none)."""
        first = None if self.first_byte_at is None else self.first_byte_at - self.began
        return self._hall.now() - self.began, first

    # -- finding somebody to ask

    def start(self) -> None:
        """Begin."""
        self._seek()

    def reconsider(self) -> None:
        """Something changed while this exchange was waiting."""
        if self.phase is RequestPhase.WAITING:
            self._seek()

    def _seek(self) -> None:
        route, desks = self._hall.find(self.model)
        if self._queued is not None and self._queued not in desks:
            self._leave_queue()
        found = self._choice.decide(route, desks, self, self._queued, self._hall.now())
        match found.step:
            case SelectionAction.ASK:
                assert found.desk is not None
                self._leave_queue()
                self._hall.waits(self, False)
                self._use(found.desk)
            case SelectionAction.QUEUED:
                if found.desk is not self._queued:
                    self._leave_queue()
                    self._queued = found.desk
                    self._wait(found.words)
            case SelectionAction.WAIT:
                self._leave_queue()
                self._wait(found.words)
            case SelectionAction.TELL:
                assert found.refusal is not None
                self._tell(found.refusal)
            case SelectionAction.FAIL:
                self._fail(found.status, found.code, found.words, found.headers)

    def _leave_queue(self) -> None:
        queued, self._queued = self._queued, None
        if queued is not None:
            queued.leave(self)

    def _wait(self, words: str) -> None:
        self.words = words
        self._hall.waits(self, True)

    def granted(self, desk: TargetQueue) -> None:
        """The queue has come to this exchange."""
        self._queued = None
        self._hall.waits(self, False)
        self._use(desk)

    def _use(self, desk: TargetQueue) -> None:
        self._at = desk
        self._slot = desk if self._choice.needs_slot else None
        self.kind = desk.target.kind
        self._voice.asking(desk)
        self._taken_at = self._last_upstream = self._hall.now()
        desk.askers[self] = None
        connection = desk.pool.take()
        if connection is not None:
            self._ask(connection)
        else:
            self._connect(desk.pool)

    def _connect(self, pool: UpstreamPool) -> None:
        self.phase = RequestPhase.CONNECTING
        self._connecting = pool
        self._hall.connect(self, pool)

    def connected(self, connection: UpstreamConnection) -> None:
        """There is a connection to ask on."""
        if connection.pool is not self._connecting:
            connection.drop()  # nobody waits for it any more
            return
        self._ask(connection)

    def _ask(self, connection: UpstreamConnection) -> None:
        self._connecting = None
        self.phase = RequestPhase.ASKING
        self._upstream = connection
        self._asked_at = self._last_upstream = self._hall.now()
        self.words = "the model is reading the prompt"
        connection.send(self._inquiry.wire(connection.pool, self._hall.key_for(connection.pool.target)), self)

    def not_connected(self, pool: UpstreamPool, reason: str) -> None:
        """There is nobody."""
        if pool is self._connecting:
            self._try_again(reason)

    def deserted(self) -> None:
        """The host is believed to be gone: what it has not begun to answer is asked of another one, if there is one."""
        if not self._begun and self.phase is not RequestPhase.WAITING and self._another(at_once=False):
            self._try_again("it is gone")

    @property
    def _begun(self) -> bool:
        """Whether something of an answer, more than comments, has been passed on: then nobody else can give it."""
        return self.over or (self._repair is not None and self._repair.started)

    def _another(self, *, at_once: bool = True) -> bool:
        """Whether there is another host, that could begin `at_once` or in its turn."""
        _, desks = self._hall.find(self.model)
        return self._at is not None and self._choice.another(desks, self._at, self._hall.now(), at_once=at_once)

    def _try_again(self, reason: str) -> None:
        """An attempt failed before anything of an answer was passed on."""
        desk, now = self._let_go(), self._hall.now()
        assert desk is not None
        self._hall.failed(desk, now)
        self._choice.avoid(desk, now + AVOID_SECONDS)
        self._attempts += 1
        if self._attempts >= MAX_ATTEMPTS:
            message = f"{self.model} could not be reached after {self._attempts} tries: {reason}."
            self._fail(502, UPSTREAM_LOST, message, "retry-after: 5\r\n")
        else:
            self._start_over()

    def _start_over(self) -> None:
        self._repair = None
        self.phase = RequestPhase.WAITING
        self._seek()

    def _let_go(self) -> TargetQueue | None:
        """Hang up and give the slot back; returns who was asked."""
        self._connecting = None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()
        desk, self._at = self._at, None
        slot, self._slot = self._slot, None
        if desk is not None:
            desk.askers.pop(self, None)
        if slot is not None:
            slot.release(self._hall.now() - self._taken_at)
        return desk

    # -- hearing the answer

    def upstream_head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        """The target has begun to answer."""
        if self._connection.paused and self._upstream is not None:
            self._upstream.pause()
        if self.streams and status == 200 and content_type.startswith("text/event-stream"):
            self.phase = RequestPhase.STREAMING
            shared = self._at is not None and self._at.offer.split
            self._repair = self._inquiry.stream_repair(self._hall.wall(), shared=shared)
        else:
            self.phase = RequestPhase.BUFFERING
            self._whole = WholeResponse(status, content_type.startswith("application/json"), retry_after(headers))

    def upstream_alive(self) -> None:
        """The target says that it is at work."""
        self._last_upstream = self._hall.now()

    def upstream_data(self, data: bytes) -> None:
        """More of the answer."""
        if self._repair is not None:
            self._stream_on(self._repair, data)
            return
        self._last_upstream = self._hall.now()
        self._whole.add(data)
        if self._whole.size > MAX_ANSWER_BYTES:
            self._let_go()
            self._fail(502, "upstream_error", f"The answer is larger than {MAX_ANSWER_BYTES >> 20} MiB.")

    def _stream_on(self, repair: StreamRepair, data: bytes) -> None:
        if repair.complete:
            # It goes on after the end: nothing of that is wanted, and it may never stop.
            self._end_stream(b"", "failed" if repair.failed else "answered")
            return
        self._last_upstream = self._hall.now()
        begun = repair.started
        passed = repair.feed(data)
        if repair.failed:
            self._stream_failed(repair, passed, begun)
            return
        if repair.started and not begun:
            self._first_byte()
        self._voice.pass_on(passed, self._last_upstream)

    def _stream_failed(self, repair: StreamRepair, passed: bytes, begun: bool) -> None:
        """A stream ended with an error: that of a peer which had said nothing else is no reason to give up, nor that a
        worker of an engine was lost before it had said anything."""
        refusal = None if begun or self.kind is not TargetKind.PEER else refusal_in_stream(self.api, passed)
        if repair.worker_lost and not begun:
            self._try_again(PART_LOST)
        elif refusal is not None:
            self._refused(refusal)
        else:
            self._end_stream(passed, "lost" if repair.worker_lost else "failed")

    def _refused(self, refusal: UpstreamError) -> None:
        """A host gave an answer that another may do better."""
        desk, self._repair = self._let_go(), None
        assert desk is not None
        if self._choice.refused(desk, refusal, self._hall.now()):
            self._start_over()
        else:
            words = f"{self.model} is not served any more where it was. Try again soon."
            self._fail(503, "model_unavailable", words, "retry-after: 5\r\n")

    def _first_byte(self) -> None:
        now, desk = self._last_upstream, self._at
        if self.first_byte_at is None:
            self.first_byte_at = now
        if desk is not None:
            if self.streams:
                desk.first_byte.add(now - self._asked_at, self._inquiry.about_tokens)
            self._choice.begun(desk, now)

    def upstream_end(self, data: bytes) -> None:
        """The answer is complete."""
        self._upstream = None
        self._last_upstream = self._hall.now()
        if self._repair is None:
            self._whole.add(data)
            self._answer(self._whole)
            return
        repair, begun = self._repair, self._repair.started
        rest = repair.feed(data) + repair.finish()
        if repair.failed:
            self._stream_failed(repair, rest, begun)
            return
        if not begun:
            self._first_byte()
        self._end_stream(rest, "answered")

    def upstream_lost(self, reason: str, *, stale: bool) -> None:
        """The target is gone, or does not speak as it should."""
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        if self._repair is not None and self._repair.complete:
            self._end_stream(b"", "failed" if self._repair.failed else "answered")
        elif stale and not (self.kind is TargetKind.PEER and self._another(at_once=False)):
            # It had hung up on an idle connection while our request was under way: not a fault of anybody. A peer may
            # be gone altogether, though, and to find out takes seconds.
            self._connect(upstream.pool)
        elif not self._begun:
            self._try_again(reason)
        else:
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        assert self._repair is not None
        why = self._hall.find(self.model)[0].lost_reason if self._at is not None and self._at.offer.split else ""
        message = (
            loss_words(self.model, why) if why else f"{self.model} was lost in the middle of the answer: {reason}."
        )
        self._end_stream(self._repair.fail(UPSTREAM_LOST, message), "lost")

    def _answer(self, whole: WholeResponse) -> None:
        if not 200 <= whole.status < 300:
            refusal = UpstreamError(*translate_error(self.api, whole.status, whole.body), whole.retry_after)
            if self._at is not None and self._at.offer.split and refusal.worker_lost:
                self._try_again(PART_LOST)
            elif self.kind is not None and refusal.elsewhere(self.kind):
                self._refused(refusal)
            else:
                self._tell(refusal)
            return
        if self.streams:
            # A client would look for events in it, find none, and call that an empty answer.
            self._fail(502, "upstream_error", "The model server did not stream although it was asked to.")
            return
        answer = self._inquiry.whole_answer(whole.body, is_json=whole.is_json, now=self._hall.wall())
        if answer is None:
            self._tell(UpstreamError(*translate_error(self.api, 502, whole.body)))
            return
        self._first_byte()
        self._finish("answered", whole.status)
        self._voice.whole(whole.status, answer)

    # -- speaking to the caller

    def _end_stream(self, data: bytes, outcome: str) -> None:
        self._finish(outcome, 200)
        self._voice.end(data)

    def _fail(self, status: int, code: str, message: str, headers: str = "") -> None:
        self._tell(UpstreamError(status, error_body(self.api, status, code, message)), headers)

    def _tell(self, refusal: UpstreamError, headers: str = "") -> None:
        """The end: an error of ours, or what a target answered instead of an answer."""
        begun = self._voice.streaming
        self._finish("failed" if begun or refusal.status >= 500 else "refused", 200 if begun else refusal.status)
        self._voice.refuse(refusal, headers, self._repair)

    def _finish(self, outcome: str, status: int) -> None:
        """Everything that was taken is given back; the caller still gets its last bytes after this."""
        self.phase = RequestPhase.DONE
        self.outcome, self.status = outcome, status
        self._let_go()
        self._leave_queue()
        self._hall.waits(self, False)
        self._hall.ended(self)

    # -- the caller's connection, and time

    def stopping(self) -> None:
        """The gateway closes and waits no longer."""
        if self.phase is not RequestPhase.DONE:
            self._let_go()
            self._fail(503, "stopping", "This node is stopping.", "retry-after: 10\r\n")

    def caller_gone(self) -> None:
        """Nobody wants the answer any more."""
        if self.phase is not RequestPhase.DONE:
            self._finish("abandoned", 499)

    def caller_paused(self, paused: bool) -> None:
        """Read from the target only as fast as the caller reads from us."""
        if self._upstream is not None and self.phase in (RequestPhase.STREAMING, RequestPhase.BUFFERING):
            self._last_upstream = self._hall.now()  # while it may not speak, its silence means nothing
            self._upstream.pause() if paused else self._upstream.resume()

    def tick(self, now: float) -> None:
        """About a second has passed: time limits, and a word to a caller who has heard nothing for long."""
        if self.phase is RequestPhase.DONE:
            return
        if self.phase is RequestPhase.WAITING:
            self.reconsider()
            waited = timeouts.waited_too_long(now - self.began, streams=self.streams)
            if self.phase is RequestPhase.WAITING and waited:
                message = f"{self.model} is not ready yet ({self.words}). Try again in a while."
                self._fail(503, "model_not_ready", message, "retry-after: 10\r\n")
        elif self._at is not None and not self._connection.paused:
            self._check_time(self._at, now)
        if not self.over and now - self._voice.last >= timeouts.SILENCE_SECONDS and (self.streams or self._guest):
            words = self.words
            if self._queued is not None:
                words += f", {self._queued.place(self)} ahead"
            self._voice.say(words, now)

    def _check_time(self, desk: TargetQueue, now: float) -> None:
        """Whether the target has taken too long, and what becomes of that."""
        kind, silent, repair = desk.target.kind, now - self._last_upstream, self._repair
        connecting, complete = self.phase is RequestPhase.CONNECTING, repair is not None and repair.complete
        match timeouts.overdue(kind, silent, connecting=connecting, complete=complete):
            case Overdue.HANG_UP:
                self._end_stream(b"", "failed" if repair is not None and repair.failed else "answered")
            case Overdue.CONNECT if self._another():
                self._try_again("connecting to it takes too long")
            case Overdue.SPEAK if kind is TargetKind.PEER:
                reason = f"it has not said anything for {silent:.0f} s"
                self._lost(reason) if self._begun else self._try_again(reason)
            case Overdue.SPEAK:
                self._let_go()
                self._fail(504, "upstream_timeout", f"{self.model} has not said anything for {silent:.0f} s.")
            case None if kind is not TargetKind.ENGINE and not connecting:
                self._check_beginning(desk, now)

    def _check_beginning(self, desk: TargetQueue, now: float) -> None:
        """Whether a host is so slow to begin that another one is asked."""
        # What is not a stream has its first byte at its end: no estimate could tell slow from gone.
        if self.streams and not self._begun and self._late < MAX_LATE:
            limit = desk.first_byte.deadline(self._inquiry.about_tokens, self._late)
            if now - self._asked_at > limit and self._attempts < MAX_ATTEMPTS - 1 and self._another():
                self._late += 1
                self._try_again(f"it has not begun to answer within {limit:.0f} s")
