"""What the caller of an exchange hears: an answer, whole or as a stream, an error, and a word now and then meanwhile.

Law: a stream's head is sent with its first word, and from then on everything is an event or a comment between two. Who
answered stands in the head; if that had to be sent before anybody did, it is a comment before the answer's first event.
"""

from __future__ import annotations

import re

import orjson

from meshllm.core.routing.routes import TargetKind
from meshllm.web.gateway.api_request import ApiRequest
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.gateway.upstream_errors import UpstreamError
from meshllm.web.http.access_control import is_local
from meshllm.web.http.server import Connection
from meshllm.wire.api.errors import error_event
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import PING, comment
from meshllm.wire.api.stream_repair import StreamRepair

STREAM_HEADERS = "cache-control: no-cache\r\nx-accel-buffering: no\r\n"
JSON = "application/json"
# Who answered: "engine", "backend URL" (without the URL for other machines) or "peer ID". ASCII, whatever peers call
# themselves.
HOST_HEADER = "x-mesh-llm-host"
# How fast the engine wrote, as it says itself at the end of an answer. In what a model writes a quote is escaped.
_SPEED_MARK = b'"predicted_per_second":'
_SPEED = re.compile(rb'"predicted_per_second":\s?(\d{1,9}(?:\.\d{1,17})?)[,}]')


class ResponseWriter:
    """Speaks to one caller about one request. The connection goes on to its next request with `end`, `whole`, `error`.

    `streaming`: the head of a stream has been sent; `last`: when the caller heard something (seconds, monotonic). A
    `guest` is not told who answered: it asked this node.
    """

    def __init__(
        self, connection: Connection, inquiry: ApiRequest, cors: str, now: float, *, guest: bool = False
    ) -> None:
        self._connection = connection
        self._inquiry = inquiry
        self._cors = cors
        self._guest = guest
        self._desk: TargetQueue | None = None
        self._named = guest
        self.streaming = False
        self.last = now

    def asking(self, desk: TargetQueue) -> None:
        """What is passed on from now on is the answer of `desk`."""
        self._desk = desk

    def pass_on(self, data: bytes, now: float) -> None:
        """More of a stream: whole events."""
        if data:
            data = self._heard(data)
            self.last = now
            self._connection.send_data(data)

    def end(self, data: bytes) -> None:
        """The last of a stream."""
        self._connection.end_stream(self._heard(data))

    def whole(self, status: int, answer: bytes) -> None:
        """An answer that is not a stream."""
        self._note_speed(answer)
        self._connection.send(status, JSON, answer, self._host() + self._cors)

    def refuse(self, refusal: UpstreamError, headers: str, repair: StreamRepair | None) -> None:
        """An error instead of an answer, with these `headers` or its own; in a stream it is the last event, where
        `repair` knows how far the answer was."""
        if not self.streaming:
            body = orjson.dumps(refusal.body)
            self._connection.send(refusal.status, JSON, body, (headers or refusal.headers) + self._cors)
            return
        status, code, message = refusal.status, refusal.code or "upstream_error", refusal.error["message"]
        if repair is not None:
            self.end(repair.fail(code, message, status=status))
        else:
            self.end(error_event(self._inquiry.api, status, code, message))

    def say(self, words: str, now: float) -> None:
        """A sign of life. A caller that wants no stream hears an interim answer (102), which our own gateways know."""
        if self._connection.paused:
            return
        self.last = now
        if not self._inquiry.streams:
            self._connection.send_interim()
            return
        if not self.streaming:
            self._send_head()
        # A comment may only stand between two events: the repairer passes on whole events alone.
        self._connection.send_data(comment(words) + (PING if self._inquiry.api is Api.MESSAGES else b""))

    def _heard(self, data: bytes) -> bytes:
        """`data` of an answer, with what has to come before it."""
        self._note_speed(data)
        if not self.streaming:
            self._send_head(self._host())
        elif not self._named and self._desk is not None:
            data = comment(f"answered by {self._who(self._desk)}") + data
        self._named = True
        return data

    def _note_speed(self, data: bytes) -> None:
        if _SPEED_MARK in data and self._desk is not None and (told := _SPEED.search(data)) is not None:
            self._desk.tokens_per_second = float(told[1])

    def _host(self) -> str:
        return "" if self._guest or self._desk is None else f"{HOST_HEADER}: {self._who(self._desk)}\r\n"

    def _who(self, desk: TargetQueue) -> str:
        """Who answered. Where its backends are is nothing that a node tells other machines."""
        hidden = desk.target.kind is TargetKind.BACKEND
        if hidden and not is_local(self._connection.peer, self._inquiry.headers):
            return TargetKind.BACKEND.value
        return desk.host

    def _send_head(self, host: str = "") -> None:
        self.streaming = True
        self._connection.start_stream(200, "text/event-stream; charset=utf-8", STREAM_HEADERS + host + self._cors)
