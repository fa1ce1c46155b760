"""The connection of a caller that speaks Ollama's API, for a request that is processed as one of OpenAI's.

Whatever is written to it in OpenAI's shape leaves it in Ollama's: answers, streams and errors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from meshllm.web.gateway.relay import JSON, SILENCE_SECONDS
from meshllm.web.http.server import CallerConnection
from meshllm.wire.api.ollama_answer import MEDIA_TYPE, Moment, OllamaAnswer
from meshllm.wire.api.ollama_errors import ollama_error
from meshllm.wire.api.ollama_request import AnswerForm


def stamp(later: float) -> str:
    """The time in so many seconds, as RFC 3339 writes it."""
    moment = datetime.now(UTC) + timedelta(seconds=later)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class OllamaErrors:
    """A `CallerConnection` for requests without an answer of a model: errors get Ollama's shape."""

    def __init__(self, connection: CallerConnection, model: str = "") -> None:
        """`model`: as the caller named it, for messages."""
        self._connection = connection
        self._model = model

    @property
    def request_id(self) -> str:
        """See `CallerConnection`, as for all methods here."""
        return self._connection.request_id

    @property
    def busy(self) -> bool:
        """Whether a response is in progress."""
        return self._connection.busy

    @property
    def paused(self) -> bool:
        """Whether the caller reads more slowly than we write."""
        return self._connection.paused

    def send(self, status: int, content_type: str, body: bytes, headers: str = "") -> None:
        """A whole response."""
        if status >= 400:
            status, body = ollama_error(status, body, self._model)
        self._connection.send(status, JSON, body, headers)

    def send_interim(self) -> None:
        """A sign of life."""
        self._connection.send_interim()

    def start_stream(self, status: int, content_type: str, headers: str = "") -> None:
        """The head of a stream."""
        self._connection.start_stream(status, MEDIA_TYPE, headers)

    def send_data(self, data: bytes) -> None:
        """More of a stream."""
        self._connection.send_data(data)

    def end_stream(self, data: bytes = b"") -> None:
        """The last of a stream."""
        self._connection.end_stream(data)

    def abort(self) -> None:
        """Close now."""
        self._connection.abort()


class OllamaCaller(OllamaErrors):
    """The same for a request that a model answers."""

    def __init__(
        self,
        connection: CallerConnection,
        form: AnswerForm,
        model: str,
        *,
        streams: bool,
        now: Callable[[], float],
    ) -> None:
        """`streams`: the caller reads a stream. `now` in seconds (monotonic)."""
        super().__init__(connection, model)
        self._answer = OllamaAnswer(form, model)
        self._streams = streams
        self._now = now
        self._began = self._written = now()

    def _moment(self) -> Moment:
        return Moment(stamp(0.0), self._now() - self._began)

    def send(self, status: int, content_type: str, body: bytes, headers: str = "") -> None:
        """A whole response, or an error."""
        if status < 400:
            status, body = self._answer.whole(body, self._moment())
            if self._streams and status == 200:  # of a request that was not streamed: the only line of a stream
                self._connection.start_stream(status, MEDIA_TYPE, headers)
                self._connection.end_stream(body + b"\n")
                return
            self._connection.send(status, JSON, body, headers)
            return
        super().send(status, content_type, body, headers)

    def send_data(self, data: bytes) -> None:
        """The lines for a block of whole events.

        Some events make no line: the arguments of a call are passed on when they are complete. The caller hears
        meanwhile that the request is alive.
        """
        moment = self._moment()
        lines = self._answer.feed(data, moment)
        if not lines and self._now() - self._written >= SILENCE_SECONDS:
            lines = self._answer.alive(moment)
        if lines:
            self._written = self._now()
        self._connection.send_data(lines)

    def end_stream(self, data: bytes = b"") -> None:
        """The last lines."""
        moment = self._moment()
        self._connection.end_stream(self._answer.feed(data, moment) + self._answer.finish(moment))
