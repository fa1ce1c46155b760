"""An OpenAI-compatible backend that answers with the text and the thinking that a test sets."""

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
# Characters per piece of an answer.
PIECE = 7


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedBackend

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in self.server.models]
        self._whole(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.received.append(body)
        if self.server.refusal is not None:
            self._whole(400, {"error": {"message": self.server.refusal, "type": "invalid_request_error"}})
            return
        try:
            self._stream()
        except OSError:
            self.server.disconnected.set()
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
        for name, text in (("reasoning_content", self.server.thinking), ("content", self.server.text)):
            for start in range(0, len(text), PIECE):
                self._event({"index": 0, "delta": {name: text[start : start + PIECE]}, "finish_reason": None})
        if not self.server.may_finish.is_set():
            while not self.server.may_finish.wait(0.05):
                self._chunk(b": waiting\n\n")  # fails when the client has disconnected
        self._event({"index": 0, "delta": {}, "finish_reason": "stop"})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, choice: dict[str, Any]) -> None:
        event = {"id": "c", "object": "chat.completion.chunk", "model": self.server.models[0], "choices": [choice]}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_: object) -> None:
        """No log."""


class ScriptedBackend(ThreadingHTTPServer):
    """Answers with `thinking` and `text`, or refuses with `refusal`. While `may_finish` is clear, no answer ends.

    `received` are the requests; `disconnected` is set when a client closes the connection before the end.
    """

    daemon_threads = False

    def __init__(self, *models: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.text, self.thinking = "", ""
        self.refusal: str | None = None
        self.received: list[dict[str, Any]] = []
        self.may_finish, self.disconnected = Event(), Event()
        self.may_finish.set()
        self._connections: list[socket.socket] = []

    def reset(self) -> None:
        """Back to the initial state."""
        self.text, self.thinking, self.refusal = "", "", None
        self.received.clear()
        self.may_finish.set()
        self.disconnected.clear()

    @property
    def url(self) -> str:
        """The URL for `--backend`."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, to close it at the end."""
        self._connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connection errors are expected."""


@contextmanager
def running_backend(backend: ScriptedBackend) -> Iterator[ScriptedBackend]:
    """Run `backend` in a thread; all threads have ended afterwards."""
    thread = Thread(target=backend.serve_forever, args=(0.05,), name="scripted", daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        backend.may_finish.set()
        backend.shutdown()
        thread.join()
        for connection in backend._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        backend.server_close()
