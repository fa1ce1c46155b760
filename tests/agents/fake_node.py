"""A node as agents see it: models with a context, and short answers in each API. It records what it is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

ANSWER = "Hello from the mesh."


@dataclass
class FakeNode:
    """What it serves: names with their context, and further facts under `mesh`. `requests`: (method, path, headers,
    body)."""

    models: Sequence[tuple[str, int]] = (("tiny", 32_768),)
    mesh: dict[str, dict[str, Any]] = field(default_factory=dict)
    key: str = ""
    server_name: str = "mesh-llm"
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    port: int = 0

    def cards(self) -> dict[str, Any]:
        """The body of /v1/models."""
        host = {"kind": "engine", "name": "this node", "slots": 4}
        facts = {"hosts": [host], "loaded": True}
        cards = [
            {"id": name, "object": "model", "max_input_tokens": context, "mesh": facts | self.mesh.get(name, {})}
            for name, context in self.models
        ]
        return {"object": "list", "data": cards}


def _events(path: str, model: str) -> list[tuple[str, Any]]:
    """The stream of an answer: (event, data)."""
    if path.endswith("/messages"):
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
        usage = {"input_tokens": 10, "output_tokens": 5}
        text = {"type": "text_delta", "text": ANSWER}
        events = [
            {"type": "message_start", "message": message | {"stop_reason": None, "usage": usage}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": text},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        ]
        return [(str(event["type"]), event) for event in events]
    if path.endswith("/responses"):
        part = {"type": "output_text", "text": ANSWER, "annotations": []}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        response = {"id": "resp_1", "object": "response", "model": model, "status": "completed", "output": [item]}
        events = [
            {"type": "response.created", "response": response | {"status": "in_progress", "output": []}},
            {"type": "response.output_item.added", "output_index": 0, "item": item | {"content": []}},
            {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "delta": ANSWER},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": response | {"usage": usage}},
        ]
        return [(str(event["type"]), event) for event in events]
    base = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": model}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    delta = {"index": 0, "delta": {"role": "assistant", "content": ANSWER}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return [("", base | {"choices": [delta]}), ("", base | {"choices": [end], "usage": usage})]


def _whole(path: str, model: str) -> dict[str, Any]:
    """An answer that is not streamed."""
    if path.endswith("/count_tokens"):
        return {"input_tokens": 10}
    if path.endswith("/messages"):
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn",
            "content": [{"type": "text", "text": ANSWER}], "usage": {"input_tokens": 10, "output_tokens": 5},
        }  # fmt: skip
    message = {"role": "assistant", "content": ANSWER}
    return {
        "id": "c", "object": "chat.completion", "created": 0, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip


def _handler(node: FakeNode) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def version_string(self) -> str:
            return node.server_name

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        def do_HEAD(self) -> None:
            self._answer(b"", "text/plain")

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            node.requests.append(("GET", path, dict(self.headers), None))
            if path == "/v1/models" and node.key and self.headers.get("authorization") != f"Bearer {node.key}":
                self._answer(b"{}", "application/json", 401)
            elif path == "/v1/models":
                self._answer(json.dumps(node.cards()).encode(), "application/json")
            else:
                self._answer(b'{"name": "mesh-llm"}', "application/json")

        def do_POST(self) -> None:
            path = self.path.partition("?")[0]
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            node.requests.append(("POST", path, dict(self.headers), body))
            model = str(body.get("model", ""))
            if not body.get("stream"):
                self._answer(json.dumps(_whole(path, model)).encode(), "application/json")
                return
            lines = [
                (f"event: {name}\n" if name else "") + f"data: {json.dumps(data)}\n\n"
                for name, data in _events(path, model)
            ]
            end = "" if path.endswith(("/messages", "/responses")) else "data: [DONE]\n\n"
            self._answer(("".join(lines) + end).encode(), "text/event-stream")

        def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def fake_node(node: FakeNode) -> Iterator[FakeNode]:
    """`node` listens within the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(node))
    server.daemon_threads = True
    node.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
