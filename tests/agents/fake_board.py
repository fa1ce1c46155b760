"""The console of a node with a blackboard, in memory: what hooks and launchers ask for."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from meshllm.core.board.service import BoardFacts
from meshllm.daemon.pidfile import PID_FILE, RunningInstance

TOKEN = "token-of-the-run"


@dataclass(frozen=True)
class Message:
    """A message: its id, who wrote it, whom it names, its kind, and what it replies to."""

    id: str
    name: str
    to: tuple[str, ...]
    kind: str = "note"
    reply_to: str = ""


@dataclass
class FakeBoard:
    """What it holds, the paths that it was asked for, and what each cursor was told. `answer`: instead of its own:
    (status, body)."""

    name: str = "me"
    enabled: bool = True
    reason: str = "This node was started with --no-blackboard."
    answer: tuple[int, bytes] | None = None
    messages: list[Message] = field(default_factory=list)
    told: dict[str, set[str]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    port: int = 0

    def post(self, name: str, *to: str, kind: str = "note", reply_to: str = "") -> str:
        """Add a message; returns its id."""
        message = Message(secrets.token_hex(16), name, to, kind, reply_to)
        self.messages.append(message)
        return message.id

    def notice(self, name: str, cursor: str) -> dict[str, int]:
        """What the reader was not told of yet; it is told then."""
        told, reader = self.told.setdefault(cursor, set()), name or self.name
        new = [one for one in self.messages if reader in one.to and one.name != reader and one.id not in told]
        told |= {one.id for one in new}
        answered = {one.reply_to for one in self.messages if one.name == reader}
        open_questions = [one for one in new if one.kind == "question" and one.id not in answered]
        return {"count": len(new), "questions": len(open_questions)}

    def facts(self) -> dict[str, Any]:
        """The state of the board."""
        return asdict(
            BoardFacts(self.enabled, "" if self.enabled else self.reason, self.name, "node", len(self.messages), 0, ())
        )


def announce(home: Path, api: int, console: int) -> None:
    """Make this process look like the node of `home`."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    running = RunningInstance(os.getpid(), psutil.Process().create_time(), api, console, TOKEN)
    (home / PID_FILE).write_text(json.dumps(asdict(running)))


def _handler(board: FakeBoard) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            self._serve({})

        def do_POST(self) -> None:
            if self.path == "/api/attach":
                self.send_response(200)
                self.end_headers()
                self.rfile.read(1)
                return
            self._serve(json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}"))

        def _serve(self, body: dict[str, Any]) -> None:
            board.asked.append((self.path, body))
            if self.headers.get("x-mesh-llm-token") != TOKEN:
                self._send(403, b"{}")
            elif board.answer is not None:
                self._send(*board.answer)
            elif self.path == "/api/blackboard/facts":
                self._send(200, json.dumps(board.facts()).encode())
            elif self.path == "/api/blackboard/notice" and board.enabled:
                self._send(200, json.dumps(board.notice(body["name"], body["cursor"])).encode())
            elif self.path == "/api/status":
                self._send(200, b"{}")
            else:
                self._send(404, b'{"error": {"code": "blackboard_off", "message": "off"}}')

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def fake_board(board: FakeBoard) -> Iterator[FakeBoard]:
    """`board` on a port, within the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(board))
    server.daemon_threads = True
    server.block_on_close = False
    board.port = int(server.server_address[1])
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
