"""Writes a request's response to its caller: a whole response, a stream, an error, and keep-alives meanwhile.

A stream's head is sent with its first data; from then on the caller gets whole events, or comments between two events.
The head names the target that answered. A head sent before any target answered cannot; a comment before the first event
does instead.
"""

from __future__ import annotations

import re

import orjson

from meshllm.core.routing.routes import TargetKind
from meshllm.web.gateway.api_request import ApiRequest
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.upstream_errors import UpstreamError
from meshllm.web.gateway.usage import TokenUsage, UsageReader
from meshllm.web.http.server import Connection
from meshllm.wire.api.errors import error_event
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import PING, comment
from meshllm.wire.api.stream_repair import StreamRepair

STREAM_HEADERS = "cache-control: no-cache\r\nx-accel-buffering: no\r\n"
JSON = "application/json"
# The target that answered: "engine", "backend URL" (without the URL for remote callers) or "peer ID". ASCII, whatever
# names peers give themselves.
HOST_HEADER = "x-mesh-llm-host"
# The engine's generation speed, in its last event. In the model's own text a quote would be escaped.
_SPEED_MARK = b'"predicted_per_second":'
_SPEED = re.compile(rb'"predicted_per_second":\s?(\d{1,9}(?:\.\d{1,17})?)[,}]')


class ResponseWriter:
    """Writes one response. `end`, `whole` and `refuse` complete it, and let the connection go on to its next request.

    `streaming`: a stream's head has been sent; `last`: when data was last sent (seconds, monotonic). A peer is not told
    which target answered: it called this node.
    """

    def __init__(
        self,
        connection: Connection,
        request: ApiRequest,
        cors: str,
        now: float,
        *,
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
        self.last = now

    def use(self, queue: TargetQueue) -> None:
        """The target whose response is written from now on."""
        self._queue = queue

    def forward(self, data: bytes, now: float) -> None:
        """Write more of a stream: whole events."""
        if data:
            data = self._with_host(data)
            self.last = now
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

    def refuse(self, error: UpstreamError, headers: str, repair: StreamRepair | None) -> None:
        """Write an error, with these `headers` or its own. In a stream it is the last event."""
        if not self.streaming:
            body = orjson.dumps(error.body)
            self._connection.send(error.status, JSON, body, (headers or error.headers) + self._cors)
            return
        status, code, message = error.status, error.code or "upstream_error", error.error["message"]
        if repair is not None:
            self.end(repair.fail(code, message, status=status))
        else:
            self.end(error_event(self._request.api, status, code, message, request_id=self._request.request_id))

    def keep_alive(self, message: str, now: float) -> None:
        """Show that the request is alive: a comment in a stream, else an interim response (102)."""
        if self._connection.paused:
            return
        self.last = now
        if not self._request.streams:
            self._connection.send_interim()
            return
        if not self.streaming:
            self._send_head()
        # A comment may only stand between two events: the repair forwards whole events only.
        self._connection.send_data(comment(message) + (PING if self._request.api is Api.MESSAGES else b""))

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
        hidden = queue.target.kind is TargetKind.BACKEND
        if hidden and not self._local:
            return TargetKind.BACKEND.value
        return queue.label

    def _send_head(self, host: str = "") -> None:
        self.streaming = True
        self._connection.start_stream(200, "text/event-stream; charset=utf-8", STREAM_HEADERS + host + self._cors)
