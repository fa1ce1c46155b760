"""What the caller of an exchange hears: an answer, whole or as a stream, an error, and a word now and then meanwhile.

Law: a stream's head is sent with its first word, and from then on everything is an event or a comment between two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from meshllm.web.http1 import Connection
from meshllm.web.inquiry import Inquiry
from meshllm.wire.apis import Api
from meshllm.wire.sse import PING, comment

STREAM_HEADERS = "cache-control: no-cache\r\nx-accel-buffering: no\r\n"
JSON = "application/json"


class Voice:
    """Speaks to one caller about one request. The connection goes on to its next request with `end`, `whole`, `error`.

    `streaming`: the head of a stream has been sent; `last`: when the caller heard something (seconds, monotonic).
    """

    def __init__(self, connection: Connection, inquiry: Inquiry, cors: str, now: float) -> None:
        self._connection = connection
        self._inquiry = inquiry
        self._cors = cors
        self.streaming = False
        self.last = now

    def pass_on(self, data: bytes, now: float) -> None:
        """More of a stream: whole events."""
        if data:
            if not self.streaming:
                self._send_head()
            self.last = now
            self._connection.send_data(data)

    def end(self, data: bytes) -> None:
        """The last of a stream."""
        if not self.streaming:
            self._send_head()
        self._connection.end_stream(data)

    def whole(self, status: int, answer: bytes) -> None:
        """An answer that is not a stream."""
        self._connection.send(status, JSON, answer, self._cors)

    def error(self, status: int, body: Mapping[str, Any], headers: str) -> None:
        """An error, in the caller's API shape, instead of an answer: only while not `streaming`."""
        self._connection.send(status, JSON, orjson.dumps(body), headers + self._cors)

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

    def _send_head(self) -> None:
        self.streaming = True
        self._connection.start_stream(200, "text/event-stream; charset=utf-8", STREAM_HEADERS + self._cors)
