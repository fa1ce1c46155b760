"""`scripts/bench demand`: what counts as an answer, what as a loss, and one small part with real daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from meshllm import paths
from meshllm.engine.build import builder
from scripts.benchmarks import demand_calls, demand_memory
from scripts.benchmarks.demand_calls import Answer
from scripts.benchmarks.demand_nodes import EngineWatch, Seen

ROOT = Path(__file__).parents[2]
WORD = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
DONE = b"data: [DONE]\n\n"
FAULT = b'data: {"error": {"message": "the host is lost"}}\n\n'


class Handler(BaseHTTPRequestHandler):
    """Answers with the pieces that the test wants."""

    pieces: tuple[bytes, ...] = ()
    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.end_headers()
        for piece in self.pieces:
            self.wfile.write(piece)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers as `Handler` says."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.01)
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("pieces", "word", "error"),
    [
        ((ROLE, b": waiting\n\n", WORD, DONE), True, ""),
        ((ROLE, WORD), True, "the answer ended before its end"),
        ((ROLE, WORD, FAULT, DONE), True, "the host is lost"),
        ((FAULT,), False, "the host is lost"),
        ((), False, "the answer ended before its end"),
    ],
)
def test_bench_demand_counts_a_stream_with_its_end_alone(
    port: int, monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...], word: bool, error: str
) -> None:
    monkeypatch.setattr(Handler, "pieces", pieces)
    answer = demand_calls.ask(port, "m", stream=True)
    assert (answer.word is not None, answer.error) == (word, error)
    assert 0 <= answer.silence <= answer.ended - answer.begun


def test_bench_demand_counts_whole_answers(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "pieces", (b'{"choices": [{}]}',))
    assert demand_calls.ask(port, "m", stream=False).error == ""
    monkeypatch.setattr(Handler, "status", 503)
    monkeypatch.setattr(Handler, "pieces", (b'{"error": {"message": "not served"}}',))
    assert [demand_calls.ask(port, "m", stream=stream).error for stream in (False, True)] == ["503: not served"] * 2


def test_bench_demand_sees_a_model_that_is_unloaded_while_it_answers() -> None:
    watch = cast(EngineWatch, SimpleNamespace(seen={1: Seen("a", gone=5.0), 2: Seen("a"), 3: Seen("b", gone=9.0)}))

    def evicted(model: str, word: float | None, ended: float) -> bool:
        return demand_memory._was_evicted(Answer(model, True, 0.0, ended, word, 0.0, ""), watch)

    assert evicted("a", 4.0, 6.0)
    assert not evicted("a", 6.0, 8.0), "of the next process"
    assert not evicted("a", 3.0, 5.0), "it had ended"
    assert not evicted("b", 4.0, 6.0), "of another model"
    assert not evicted("a", None, 6.0)


@pytest.mark.engine
@pytest.mark.slow
def test_bench_demand_measures_and_cleans_up() -> None:
    if builder.find() is None or not any(paths.models().glob("SmolLM2-135M-Instruct*.gguf")):
        pytest.skip("the engine or the model is not here (mesh-llm --model SmolLM2-135M-Instruct)")
    with tempfile.TemporaryDirectory(prefix="de-") as name:
        # Whatever the run starts inherits this, by which it is known again.
        environment = {**os.environ, "TMPDIR": name}
        result = subprocess.run(
            [sys.executable, "-m", "scripts.benchmarks", "demand", "--only", "memory", "--quick", "--json"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        told: dict[str, Any] = json.loads(result.stdout)
        assert told["measured"]["memory"]["errors"] == []
        assert all(bar["met"] for bar in told["bars"]), told["bars"]
        left = [
            each.info["cmdline"]
            for each in psutil.process_iter(["cmdline", "environ"])
            if (each.info["environ"] or {}).get("TMPDIR") == name
        ]
        assert left == []
        assert list(Path(name).iterdir()) == []
