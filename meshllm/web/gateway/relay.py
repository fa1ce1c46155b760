"""The response of one attempt, on its way from a target to the caller.

While a request's coroutine awaits `Relay.exchange`, the callbacks here pass each piece on as it arrives: no task runs
for it. A stream's head is sent with its first data; from then on the caller gets whole events, or comments between two
events. The head names the target that answered; a head sent before any target answered cannot, and a comment before
the first event does instead.
"""

from __future__ import annotations

import asyncio
import re
from enum import Enum
from typing import TYPE_CHECKING

import orjson

from meshllm.core.routing.routes import BACKEND, ENGINE, PEER, TargetKind
from meshllm.errors import MeshError
from meshllm.tasks import Signal
from meshllm.web.gateway.api_request import ApiRequest, WholeResponse
from meshllm.web.gateway.request_log import AttemptTrace
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.upstream_errors import (
    AttemptFailed,
    ConnectionLost,
    RequestFailed,
    UpstreamError,
    retry_after,
)
from meshllm.web.gateway.usage import TokenUsage, UsageReader
from meshllm.web.http.client import UpstreamConnection
from meshllm.web.http.server import CallerConnection
from meshllm.wire.api.errors import error_event
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import PING, comment, keepalive
from meshllm.wire.api.stream_repair import StreamRepair
from meshllm.wire.api.worker_loss import UPSTREAM_LOST

if TYPE_CHECKING:
    from meshllm.web.gateway.request import ProxiedRequest

# A streaming caller gets data or a comment at least this often, plus up to a second: within 6 s, also on a busy node.
SILENCE_SECONDS = 4.5
# A stream of `/v1/responses` gets an event after so long without one: Codex gives up after 300 s, whatever comments it
# gets. Not sooner, because some SDKs stop at events that they do not know.
EVENT_SILENCE_SECONDS = 60.0
# The supervisor detects an engine process that hangs. A backend times out after this long without a byte. A peer's
# gateway sends something so often (its `SILENCE_SECONDS`), and counts as lost after missing three in a row; two if it
# answers no pings either.
BACKEND_SILENCE_SECONDS = 600.0
PEER_SILENCE_SECONDS = SILENCE_SECONDS
PEER_SILENCES = 3
DOUBTED_PEER_SILENCES = 2
# A connection attempt of this age is abandoned if another target has a free slot.
CONNECT_TIMEOUT_SECONDS = 2.0
# A complete stream ends even if its target leaves the connection open.
LINGER_SECONDS = 2.0
# A request leaves at most this many hosts because they are slow.
MAX_LATE = 2
# The largest response that is not a stream: embeddings of a large batch are some 10 MB.
MAX_RESPONSE_BYTES = 256 << 20

STREAM_HEADERS = "cache-control: no-cache\r\nx-accel-buffering: no\r\n"
JSON = "application/json"
# The target that answered: "engine", "backend URL" (without the URL for remote callers) or "peer ID". ASCII, whatever
# names peers give themselves.
HOST_HEADER = "x-mesh-llm-host"
# The engine's generation speed, in its last event. In the model's own text a quote would be escaped.
_SPEED_MARK = b'"predicted_per_second":'
_SPEED = re.compile(rb'"predicted_per_second":\s?(\d{1,9}(?:\.\d{1,17})?)[,}]')


class Overdue(Enum):
    """What a target has failed to do in time."""

    CLOSE = "close"  # the response is complete
    CONNECT = "connect"
    SEND = "send"


def overdue(
    kind: TargetKind, silent: float, *, connecting: bool, complete: bool, doubted: bool = False
) -> Overdue | None:
    """What a target of that kind should have done by now, or None. `silent`: seconds since the request or last data;
    `doubted`: the target is a peer that is not known to be alive."""
    if complete:
        return Overdue.CLOSE if silent > LINGER_SECONDS else None
    if kind is ENGINE:
        return None
    if connecting:
        return Overdue.CONNECT if silent > CONNECT_TIMEOUT_SECONDS else None
    silences = DOUBTED_PEER_SILENCES if doubted else PEER_SILENCES
    limit = silences * PEER_SILENCE_SECONDS if kind is PEER else BACKEND_SILENCE_SECONDS
    return Overdue.SEND if silent > limit else None


class Relay:
    """One attempt at a target. Once `exchange` has returned there is a `whole` response, or the `rest` of a stream.

    `begun`: part of the response, more than comments, has been forwarded: no other target can take over. `sent`: the
    target has the request. `heard`: when it was heard last.
    """

    __slots__ = (
        "_ended",
        "_failure",
        "_late",
        "_limit",
        "_now",
        "_owner",
        "_sent_at",
        "_upstream",
        "_writer",
        "begun",
        "heard",
        "kind",
        "queue",
        "repair",
        "rest",
        "sent",
        "started",
        "trace",
        "whole",
    )

    def __init__(self, owner: ProxiedRequest, queue: TargetQueue, trace: AttemptTrace, late: int) -> None:
        """`late`: how many hosts the request has left because they were slow."""
        self._owner = owner
        self._writer = owner.writer
        self._now = owner.proxy.now
        self._late = late
        self.queue = queue
        self.kind = queue.target.kind
        self.trace = trace
        self.started = self.heard = trace.started
        self._sent_at = 0.0
        self._upstream: UpstreamConnection | None = None
        self._ended: Signal[Exception | None] | None = None
        self._limit: asyncio.Timeout | None = None
        self._failure: Exception | None = None
        self.repair: StreamRepair | None = None
        self.whole: WholeResponse | None = None
        self.rest = b""
        self.begun = self.sent = False

    # -- what the coroutine awaits

    async def connect(self) -> UpstreamConnection:
        """A new connection to the target. Raises AttemptFailed."""
        limit = self._limit = asyncio.timeout(None)  # `_end` sets it
        self._ended = None
        try:
            async with limit:
                return await self.queue.pool.connect()
        except (OSError, ValueError, MeshError) as error:  # a host name that cannot be encoded is a ValueError
            if self._failure is not None:
                raise self._failure from None
            reason = f"connection failed: {error or type(error).__name__}"
            raise AttemptFailed(reason, whole=True) from error
        finally:
            self._limit = None

    async def exchange(self, connection: UpstreamConnection, request: bytes) -> None:
        """Send `request`, and relay the response until it is complete.

        Raises ConnectionLost, AttemptFailed, or RequestFailed.
        """
        ended: Signal[Exception | None] = Signal()
        self._ended = ended
        self._upstream = connection
        self.sent = True
        self.trace.connected = self._sent_at = self.heard = self._now()
        connection.send(request, self)
        failure = await ended
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Drop the connection, unless the response is complete: this stops the target's work."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.drop()

    @property
    def ended(self) -> bool:
        """Whether the coroutine is about to go on."""
        return self._failure is not None or (self._ended is not None and self._ended.is_set)

    def _end(self, failure: Exception | None = None) -> None:
        """Let the coroutine go on. While it connects, only with a failure."""
        self.close()
        if self._ended is not None:
            self._ended.set(failure)
        elif self._limit is not None and self._failure is None:
            self._failure = failure
            self._limit.reschedule(0.0)

    # -- the target's response: a defect in what handles it ends the request, which would wait for ever otherwise

    def upstream_head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        """The response's head."""
        try:
            self._head(status, content_type, headers)
        except Exception as defect:  # noqa: BLE001 - the coroutine raises it
            self._end(defect)

    def _head(self, status: int, content_type: str, headers: dict[bytes, bytes]) -> None:
        if self._owner.connection.paused and self._upstream is not None:
            self._upstream.pause()
        if self._owner.streams and status == 200 and content_type.startswith("text/event-stream"):
            wall, split = self._owner.proxy.wall(), self.queue.offer.split
            self.repair = self._owner.request.stream_repair(wall, self.kind, split=split)
        else:
            self.whole = WholeResponse(status, content_type.startswith("application/json"), retry_after(headers))

    def upstream_alive(self) -> None:
        """The target is still working."""
        self.heard = self._now()

    def upstream_data(self, data: bytes) -> None:
        """More of the response's body."""
        try:
            self._data(data)
        except Exception as defect:  # noqa: BLE001 - as above
            self._end(defect)

    def _data(self, data: bytes) -> None:
        repair = self.repair
        if repair is None:
            self._add(data)
        elif repair.complete:
            self._end()  # data after the end of the stream is dropped, and need never stop
        else:
            now = self.heard = self._now()
            forwarded = repair.feed(data)
            if repair.failed:
                self.rest = forwarded
                self._end()
                return
            if not self.begun and repair.started:
                self.begun = True
                self.first_byte()
            self._writer.forward(forwarded, now)

    def _add(self, data: bytes) -> None:
        whole = self.whole
        assert whole is not None
        self.heard = self._now()
        whole.add(data)
        if whole.size > MAX_RESPONSE_BYTES:
            message = f"The response is larger than {MAX_RESPONSE_BYTES >> 20} MiB."
            self._end(RequestFailed(502, "upstream_error", message))

    def upstream_end(self, data: bytes) -> None:
        """The response is complete."""
        self._upstream = None
        self.heard = self._now()
        try:
            if self.repair is not None:
                self.rest = self.repair.feed(data) + self.repair.finish()
            else:
                assert self.whole is not None
                self.whole.add(data)
        except Exception as defect:  # noqa: BLE001 - as above
            self._end(defect)
        else:
            self._end()

    def upstream_lost(self, reason: str, *, stale: bool) -> None:
        """The connection ended before the response was complete, or the response is malformed."""
        self._upstream = None
        complete = self.repair is not None and self.repair.complete
        self._end(None if complete else ConnectionLost(reason, stale=stale))

    def upstream_excessive(self, reason: str) -> None:
        """The response was cut because of its size; not asked again: each attempt would cost as much."""
        if self.begun or (self.repair is not None and self.repair.complete):
            self.upstream_lost(reason, stale=False)
            return
        self._owner.note_failure(self.queue, whole=False)
        message = f"The response of {self.queue.name} for {self._owner.model} was cut: {reason}."
        self._end(RequestFailed(502, UPSTREAM_LOST, message))

    def first_byte(self) -> None:
        """The response has begun with the last data."""
        if self._owner.streams:
            self.queue.first_byte.add(self.heard - self._sent_at, self._owner.request.estimated_tokens)
        self._owner.first_byte(self, self.heard)

    # -- the target's queue, the caller's connection, and time

    @property
    def digest(self) -> bytes:
        """What the request is remembered by if an engine dies of it."""
        return self._owner.request.digest

    def target_down(self) -> None:
        """The target's node is believed to be dead: if no response has begun, try another target, if there is one."""
        if not self.begun and not self.ended and self._owner.has_other(self.queue, at_once=False):
            self._end(AttemptFailed("the peer is down", whole=True))

    def caller_paused(self, paused: bool) -> None:
        """Read from the target only as fast as the caller reads from us."""
        if self._upstream is not None and (self.repair is not None or self.whole is not None):
            self.heard = self._now()  # a paused target cannot send: its silence means nothing
            self._upstream.pause() if paused else self._upstream.resume()

    def tick(self, now: float) -> None:
        """Act on a target that has taken too long."""
        if self._owner.connection.paused or self.ended:
            return
        kind, silent, repair, model = self.kind, now - self.heard, self.repair, self._owner.model
        connecting, complete = self._limit is not None, repair is not None and repair.complete
        doubted = kind is PEER and silent > PEER_SILENCE_SECONDS and not self._owner.is_routed(self.queue)
        match overdue(kind, silent, connecting=connecting, complete=complete, doubted=doubted):
            case Overdue.CLOSE:
                self._end()
            case Overdue.CONNECT if self._owner.has_other(self.queue):
                self._end(AttemptFailed(f"no connection within {silent:.0f} s", whole=True))
            case Overdue.SEND if kind is PEER:
                reason = f"no data for {silent:.0f} s (timeout)"
                self._end(ConnectionLost(reason) if self.begun else AttemptFailed(reason))
            case Overdue.SEND:
                message = f"The server of {model} sent no data for {silent:.0f} s (timeout)."
                self._end(RequestFailed(504, "upstream_timeout", message))
            case None if kind is not ENGINE and not connecting:
                self._check_first_byte(now)

    def _check_first_byte(self, now: float) -> None:
        """Try another target if this one is too slow to begin."""
        # A response that is not a stream has its first byte at its end: no estimate tells slow from dead.
        if self._owner.streams and not self.begun and self._late < MAX_LATE:
            limit = self.queue.first_byte.deadline(self._owner.request.estimated_tokens, self._late)
            if now - self._sent_at > limit and self._owner.has_other(self.queue):
                self._end(AttemptFailed(f"no first byte within {limit:.0f} s (timeout)", slow=True))


class ResponseWriter:
    """Writes one response. `end`, `whole` and `refuse` complete it, and let the connection go on to its next request.

    `streaming`: a stream's head has been sent; `last`: when data was last sent (seconds, monotonic). A peer is not told
    which target answered: it called this node.
    """

    __slots__ = ("_connection", "_cors", "_event_at", "_from_peer", "_local", "_named", "_queue", "_request", "_usage",
                 "last", "streaming")  # fmt: skip

    def __init__(
        self,
        connection: CallerConnection,
        request: ApiRequest,
        cors: str,
        now: float,
        local: bool = False,
        from_peer: bool = False,
    ) -> None:
        """`local`: the caller is a program on this machine."""
        self._connection = connection
        self._request = request
        self._cors = cors
        self._from_peer = from_peer
        self._queue: TargetQueue | None = None
        self._named = from_peer
        self._local = local
        self._usage: UsageReader | None = None
        self.streaming = False
        self.last = self._event_at = now

    def use(self, queue: TargetQueue) -> None:
        """The target whose response is written from now on."""
        self._queue = queue

    def forward(self, data: bytes, now: float) -> None:
        """Write more of a stream: whole events."""
        if data:
            data = self._with_host(data)
            self.last = self._event_at = now
            self._connection.send_data(data)

    def usage(self, data: bytes) -> TokenUsage:
        """The token counts of the stream that ends with `data`, which is yet to be written."""
        reader = self._usage or UsageReader(self._request.api)
        reader.add(data)
        return reader.read()

    def end(self, data: bytes) -> None:
        """Write the last of a stream."""
        self._connection.end_stream(self._with_host(data))

    def whole(self, status: int, body: bytes) -> None:
        """Write a response that is not a stream."""
        if _SPEED_MARK in body:
            self._note_speed(body)
        self._connection.send(status, JSON, body, self._host() + self._cors)

    def refuse(
        self, error: UpstreamError, headers: str, repair: StreamRepair | None, *, in_stream: bool = False
    ) -> None:
        """Write an error, with these `headers` or its own. In a stream, or `in_stream`, it is the last event."""
        if not (self.streaming or in_stream):
            body = orjson.dumps(error.body)
            self._connection.send(error.status, JSON, body, (headers or error.headers) + self._cors)
            return
        status, code, message = error.status, error.code or "upstream_error", error.error["message"]
        if repair is not None:
            self.end(repair.fail(code, message, status=status))
        else:
            self.end(error_event(self._request.api, status, code, message, request_id=self._request.request_id))

    def is_silent(self, now: float) -> bool:
        """Whether the caller, who reads, has heard nothing for so long that `keep_alive` is due."""
        return now - self.last >= SILENCE_SECONDS and not self._connection.paused

    def keep_alive(self, message: str, now: float) -> None:
        """Show that the request is alive: a comment in a stream, else an interim response (102)."""
        self.last = now
        if not self._request.streams:
            self._connection.send_interim()
            return
        if not self.streaming:
            self._send_head()
        # A comment may only stand between two events: the repair forwards whole events only.
        self._connection.send_data(comment(message) + self._keep_alive_event(now))

    def _keep_alive_event(self, now: float) -> bytes:
        """An event for clients whose idle timers see events alone; empty if it is not due, or the API has none."""
        api = self._request.api
        if api is Api.MESSAGES:
            return PING
        if api is not Api.RESPONSES or self._from_peer or now - self._event_at < EVENT_SILENCE_SECONDS:
            return b""
        self._event_at = now
        return keepalive(self._usage.last_number() if self._usage is not None else 0)

    def _with_host(self, data: bytes) -> bytes:
        """`data` of a response, preceded by the comment that names the target, if that is due."""
        if _SPEED_MARK in data:
            self._note_speed(data)
        if self._usage is None:
            self._usage = UsageReader(self._request.api)
        self._usage.add(data)
        if not self.streaming:
            self._send_head(self._host())
        elif not self._named and self._queue is not None:
            data = comment(f"answered by {self._target_name(self._queue)}") + data
        self._named = True
        return data

    def _note_speed(self, data: bytes) -> None:
        if self._queue is not None and (found := _SPEED.search(data)) is not None:
            self._queue.tokens_per_second = float(found[1])

    def _host(self) -> str:
        if self._from_peer or self._queue is None:
            return ""
        return f"{HOST_HEADER}: {self._target_name(self._queue)}\r\n"

    def _target_name(self, queue: TargetQueue) -> str:
        """The target's label. Remote callers do not learn the URLs of backends."""
        hidden = queue.target.kind is BACKEND
        if hidden and not self._local:
            return BACKEND.value
        return queue.label

    def _send_head(self, host: str = "") -> None:
        self.streaming = True
        self._connection.start_stream(200, "text/event-stream; charset=utf-8", STREAM_HEADERS + host + self._cors)
