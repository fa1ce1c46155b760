"""Daemons on the lab's hosts, and the models behind them: fakes that answer like an OpenAI-compatible server.

Requests to a daemon come from the loopback of its host. A fake runs in the test, which sees its requests and can delay
them. Nothing here sleeps until a fact holds: the daemon's event stream reports it.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any, cast
from urllib.parse import urlsplit

from tests.daemons import PROGRAM, Daemon
from tests.netlab.lab import Host

# Only a failing test reaches it: a mesh notices a lost host within seconds.
PATIENCE = 60.0
Status = dict[str, Any]
# Unique: a repeated request goes to the same host, for its cache.
_questions = itertools.count()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeModel

    def log_message(self, format: str, *arguments: object) -> None:
        """No output on the terminal."""

    def do_GET(self) -> None:
        self._json(200, {"object": "list", "data": [{"id": self.server.model, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fake = self.server
        fake.asked.append(body)
        fake.arrived.set()
        fake.before_first.wait(PATIENCE)
        words = [f"{fake.says}{number} " for number in range(body.get("max_tokens", 3))]
        try:
            if body.get("stream"):
                self._stream(words)
            else:
                message = {"role": "assistant", "content": "".join(words)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self._json(200, {"id": "c", "object": "chat.completion", "model": fake.model, "choices": [choice]})
        except OSError:
            fake.gave_up.append(body)
            self.close_connection = True

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, words: list[str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for index, word in enumerate(words):
            if index == self.server.pause_after:
                self.server.go_on.wait(PATIENCE)
            delta = {"content": word} if index else {"role": "assistant", "content": word}
            self._event({"index": 0, "delta": delta, "finish_reason": None})
        self._event({"index": 0, "delta": {}, "finish_reason": "stop"})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, choice: dict[str, Any]) -> None:
        event = {"id": "c", "object": "chat.completion.chunk", "model": self.server.model, "choices": [choice]}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


class FakeModel(ThreadingHTTPServer):
    """A model server on a host's loopback. Its answers are made of the word `says`, so that one sees who answered.

    `before_first` and `go_on` hold answers back while they are clear: before the first byte, and in a stream after
    `pause_after` words. `asked` are the requests that came, `gave_up` those whose asker went away.
    """

    daemon_threads = False

    def __init__(self, host: Host, model: str, says: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = host.socket()
        self.model, self.says = model, says
        self.asked: list[dict[str, Any]] = []
        self.gave_up: list[dict[str, Any]] = []
        self.before_first, self.go_on, self.arrived = Event(), Event(), Event()
        self.before_first.set()
        self.go_on.set()
        self.pause_after = 2
        self._connections: list[socket.socket] = []
        self.server_bind()
        self.server_activate()

    @property
    def url(self) -> str:
        """For `--backend`."""
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Keeps connections, to close them."""
        self._connections.append(request)
        super().process_request(request, client_address)

    def end(self) -> None:
        """Answer what is held, close all connections and stop: no thread is left."""
        self.before_first.set()
        self.go_on.set()
        self.shutdown()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reset connection is not reported."""


@contextmanager
def serving(fake: FakeModel) -> Iterator[FakeModel]:
    """Runs it."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fake.serve_forever, 0.05)
        try:
            yield fake
        finally:
            fake.end()
            running.result()


@dataclass
class Answer:
    """The result of an API call: status, text of all pieces, their number, comments between them."""

    status: int
    text: str = ""
    pieces: int = 0
    done: bool = False
    body: dict[str, Any] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)


class Node(Daemon):
    """A daemon on a host."""

    def __init__(
        self, host: Host, home: Path, *arguments: str, environment: dict[str, str] | None = None, stdin: str = ""
    ) -> None:
        self.host = host
        super().__init__(home, *arguments, environment=environment, prefix=host.prefix, stdin=stdin)
        self._callers = ThreadPoolExecutor(32, thread_name_prefix=f"callers of {host.name}")

    def _finish(self) -> None:
        super()._finish()
        self._callers.shutdown()

    def _connect(self, url: str) -> http.client.HTTPConnection:
        port = urlsplit(url).port or 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.sock = self.host.socket(socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(PATIENCE)
            connection.sock.connect(("127.0.0.1", port))
        except OSError:
            connection.close()
            raise
        return connection

    def get(self, path: str) -> Any:
        """JSON of the API ("/v1/...") or the console ("/api/...")."""
        connection = self._connect(self.console_url if path.startswith("/api/") else self.base_url)
        try:
            connection.request("GET", path, headers=self.owner if path.startswith("/api/") else {})
            return json.load(connection.getresponse())
        finally:
            connection.close()

    def status(self) -> Status:
        """/api/status."""
        return cast(Status, self.get("/api/status"))

    def until(self, fact: Callable[[Status], object], what: str) -> Status:
        """The first status for which `fact` holds, from the daemon's event stream."""
        connection = self._connect(self.console_url)
        last: Status = {}
        deadline = time.monotonic() + PATIENCE
        try:
            connection.request("GET", "/api/events", headers=self.owner)
            with connection.getresponse() as response:
                event = b""
                for line in response:
                    if line.startswith(b"event: "):
                        event = line[7:].strip()
                    elif line.startswith(b"data: ") and event == b"status":
                        last = json.loads(line[6:])
                        if fact(last):
                            return last
                    if time.monotonic() > deadline:
                        break
        except TimeoutError:
            pass
        finally:
            connection.close()
        raise AssertionError(f"{self.host.name} waited in vain for {what}; its mesh: {last.get('mesh')}")

    def models(self) -> set[str]:
        """The models of /v1/models, without the choice among them."""
        return {model["id"] for model in self.get("/v1/models")["data"]} - {"auto"}

    def invite(self) -> str:
        """A fresh invite to this node's mesh."""
        environment = {**os.environ, "MESH_LLM_HOME": str(self.home)}
        return self.host.run([PROGRAM, "invite"], env=environment).stdout.strip()

    def chat(
        self,
        model: str,
        *,
        tokens: int = 3,
        stream: bool = False,
        each: Callable[[int], object] | None = None,
        question: str = "",
    ) -> Answer:
        """Ask something new, or that question; `each` hears after each piece how many there were.

        Raises OSError when cut off.
        """
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question or f"Question {next(_questions)}"}],
            "max_tokens": tokens,
            "stream": stream,
            "temperature": 0,
        }
        connection = self._connect(self.base_url)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            answer = Answer(response.status)
            if not stream or response.status != 200:
                answer.body = json.load(response)
                if response.status == 200:
                    answer.text, answer.done = answer.body["choices"][0]["message"]["content"], True
                return answer
            for line in response:
                self._piece(answer, line, each)
            return answer
        finally:
            connection.close()

    def _piece(self, answer: Answer, line: bytes, each: Callable[[int], object] | None) -> None:
        if line.startswith(b"data: [DONE]"):
            answer.done = True
        elif line.startswith(b": "):
            answer.comments.append(line[2:].decode().strip())
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                answer.body = event
            for choice in event.get("choices", ()):
                answer.text += choice["delta"].get("content") or ""
                answer.pieces += bool(choice["delta"].get("content"))
            if each is not None:
                each(answer.pieces)

    def ask(self, model: str, **options: Any) -> Future[Answer]:
        """`chat`, in the background."""
        return self._callers.submit(self.chat, model, **options)


def host_model(host: Host, model: str, says: str = "") -> FakeModel:
    """A fake model on a host, running until the lab ends."""
    fake = FakeModel(host, model, says or host.name)
    host.lab.stack.enter_context(serving(fake))
    return fake


def start(host: Host, home: Path, *arguments: str, environment: dict[str, str] | None = None) -> Node:
    """A daemon that listens and knows its mesh; it ends with the lab at the latest."""
    node = Node(host, home, *arguments, environment=environment)
    host.lab.stack.callback(_end, node)
    node.wait_until_listening()
    node.until(lambda status: status["mesh"] is not None, "the mesh to be looked for")
    return node


def _end(node: Node) -> None:
    if node.process.poll() is None:
        node.stop()
    elif not node.process.stdout.closed:  # type: ignore[union-attr]
        node._finish()


def peers(status: Status, state: str = "alive") -> set[str]:
    """The ids of peers in that state."""
    mesh = status["mesh"] or {"peers": []}
    return {peer["id"] for peer in mesh["peers"] if peer["status"] == state}
