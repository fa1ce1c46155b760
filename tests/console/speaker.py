"""A model server that says what a test has written down: any markdown, any thinking, and as slowly as is wanted."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

OPEN_WAIT_SECONDS = 60.0
# An answer comes in pieces of so many characters.
PIECE = 7


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Speaker

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in self.server.models]
        self._whole(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked)
        if self.server.refusal is not None:
            self._whole(400, {"error": {"message": self.server.refusal, "type": "invalid_request_error"}})
            return
        try:
            self._stream()
        except OSError:
            self.server.gave_up.set()
            self.close_connection = True

    def _whole(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for name, text in (("reasoning_content", self.server.thinks), ("content", self.server.says)):
            for start in range(0, len(text), PIECE):
                self._event({"index": 0, "delta": {name: text[start : start + PIECE]}, "finish_reason": None})
        if not self.server.goes_on.is_set():
            while not self.server.goes_on.wait(0.05):
                self._chunk(b": on its way\n\n")  # which is how it hears that nobody listens any more
        self._event({"index": 0, "delta": {}, "finish_reason": "stop"})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, choice: dict[str, Any]) -> None:
        event = {"id": "c", "object": "chat.completion.chunk", "model": self.server.models[0], "choices": [choice]}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_: object) -> None:
        """Nothing is written."""


class Speaker(ThreadingHTTPServer):
    """Says `says` after having thought `thinks`, or refuses with `refusal`. While `goes_on` is clear, no answer ends.

    `asked` are the requests that came; `gave_up` is set when somebody went away in the middle.
    """

    daemon_threads = False

    def __init__(self, *models: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.says, self.thinks = "", ""
        self.refusal: str | None = None
        self.asked: list[dict[str, Any]] = []
        self.goes_on, self.gave_up = Event(), Event()
        self.goes_on.set()
        self._connections: list[socket.socket] = []

    def reset(self) -> None:
        """As if nobody had asked anything."""
        self.says, self.thinks, self.refusal = "", "", None
        self.asked.clear()
        self.goes_on.set()
        self.gave_up.clear()

    @property
    def url(self) -> str:
        """For `--backend`."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remembers whom to hang up on."""
        self._connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut off is nothing to report."""


@contextmanager
def speaking(speaker: Speaker) -> Iterator[Speaker]:
    """`speaker`, answering; afterwards no thread of it is left."""
    thread = Thread(target=speaker.serve_forever, args=(0.05,), name="speaker")
    thread.start()
    try:
        yield speaker
    finally:
        speaker.goes_on.set()
        speaker.shutdown()
        thread.join()
        for connection in speaker._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        speaker.server_close()
