"""An OpenAI-compatible backend whose model calls a tool: no small model does so every time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

NAME = "tool-caller"
# Of the call's arguments, which come in pieces.
ARGUMENTS = ('{"ci', 'ty": "', 'Rome"}')


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """No output on the terminal."""

    def do_GET(self) -> None:
        self._whole({"object": "list", "data": [{"id": NAME, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        last = body["messages"][-1]
        if last["role"] == "tool":
            # The result must name the call that the assistant made.
            known = [call["id"] for message in body["messages"] for call in message.get("tool_calls") or ()]
            message: dict[str, Any] = {
                "role": "assistant",
                "content": "sunny" if last["tool_call_id"] in known else "?",
            }
        else:
            call = {
                "id": "call_a",
                "type": "function",
                "function": {"name": "weather", "arguments": "".join(ARGUMENTS)},
            }
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        if body.get("stream"):
            self._stream(message)
            return
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
        self._whole({"id": "c", "object": "chat.completion", "model": NAME, "choices": [choice]})

    def _whole(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, message: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": message["content"]}]
        for call in message.get("tool_calls", ()):
            head = {"index": 0, "id": call["id"], "type": "function", "function": {"name": "weather", "arguments": ""}}
            deltas.append({"tool_calls": [head]})
            deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ARGUMENTS]
        for delta in deltas:
            self._event({"index": 0, "delta": delta, "finish_reason": None})
        self._event({"index": 0, "delta": {}, "finish_reason": "tool_calls" if len(deltas) > 1 else "stop"})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, choice: dict[str, Any]) -> None:
        event = {"id": "c", "object": "chat.completion.chunk", "model": NAME, "choices": [choice]}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


@contextmanager
def tool_caller() -> Iterator[str]:
    """Run the backend; its URL, for `--backend`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,), name="tool caller", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
