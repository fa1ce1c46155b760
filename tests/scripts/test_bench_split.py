"""`scripts/bench split-engine`: the relay, and a minimal run."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshllm import paths
from meshllm.engine.build import builder
from scripts.benchmarks.relay import Relay, connect

ROOT = Path(__file__).parents[2]


class Echo:
    """An echo server on a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.endpoint = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.endpoint)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Echo]:
    echo = Echo(tmp_path / "echo.sock")
    yield echo
    echo.close()


def exchange(endpoint: str, size: int) -> str:
    """Send `size` bytes, read as many, and return the digest of the reply."""
    digest, left = hashlib.sha256(), size
    with connect(endpoint) as connection:
        sender = threading.Thread(target=connection.sendall, args=(bytes(range(256)) * (size // 256),), daemon=True)
        sender.start()
        while left:
            data = connection.recv(1 << 16)
            assert data
            digest.update(data)
            left -= len(data)
        sender.join()
    return digest.hexdigest()


@pytest.mark.parametrize("delay", [0.0, 0.005])
def test_relay_keeps_order_and_counts_bytes(echo: Echo, delay: float) -> None:
    size, before = 8 << 20, set(threading.enumerate())
    with Relay(echo.endpoint, delay) as wire:
        assert exchange(wire.endpoint, size) == hashlib.sha256(bytes(range(256)) * (size // 256)).hexdigest()
        assert (wire.sent, wire.received, wire.connections) == (size, size, 1)
    assert set(threading.enumerate()) == before


def test_relay_counts_round_trips(echo: Echo) -> None:
    with Relay(echo.endpoint) as wire, connect(wire.endpoint) as connection:
        for _ in range(7):
            connection.sendall(b"ping")
            assert connection.recv(4, socket.MSG_WAITALL) == b"ping"
        assert wire.turns == 7


def test_relay_cut_closes_both_sides(echo: Echo) -> None:
    with Relay(echo.endpoint) as wire, connect(wire.endpoint) as connection:
        connection.sendall(b"ping")
        assert connection.recv(4, socket.MSG_WAITALL) == b"ping"
        wire.cut()
        assert connection.recv(1) == b""
        assert exchange(wire.endpoint, 256)  # the target has seen the end, and takes the next


def test_relay_without_a_listener_closes_the_connection(tmp_path: Path) -> None:
    with Relay(str(tmp_path / "nobody")) as wire, connect(wire.endpoint) as connection:
        assert connection.recv(1) == b""


@pytest.mark.engine
@pytest.mark.slow
def test_bench_split_engine_measures() -> None:
    if builder.find() is None or not list(paths.models().glob("SmolLM2-135M-Instruct*.gguf")):
        pytest.skip("the engine or the model is not here")
    command = [sys.executable, "-m", "scripts.benchmarks", "split-engine", "--rounds", "1", "--tokens", "4", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"solo", "ours, 2 nodes, 20 ms", "ours, 3 nodes, 10 ms each"} <= set(told["measured"])
    bars = {bar["name"]: bar for bar in told["bars"]}
    assert bars["sent at load, x the file"]["met"]
    assert bars["bytes back per token"]["met"]
