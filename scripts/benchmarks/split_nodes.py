"""The programs of a split model without daemons: workers (ggml-rpc-server) and their host (llama-server).

The stock engine's RPC supports loopback ports only; the patched one uses Unix sockets.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .children import Child, free_port
from .relay import connect

TIMEOUT_S = 120.0
# As the daemon sets them: threads that wait do not spin for long, and an abort does not start a debugger.
ENVIRONMENT = {"GOMP_SPINCOUNT": "2000", "GGML_NO_BACKTRACE": "1"}


class Scene:
    """Starts the programs of one split; they end with the `with` block. `folder` is for logs, lists and sockets."""

    def __init__(self, stack: ExitStack, programs: Path, *, threads: int = 1, ports: bool = False) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-split-")))
        self._stack = stack
        self._programs = programs
        self._threads = threads
        self._ports = ports
        self._count = 0

    def endpoint(self) -> str:
        """A free endpoint."""
        self._count += 1
        return f"127.0.0.1:{free_port()}" if self._ports else str(self.folder / f"{self._count}.sock")

    def list_of(self, *files: Path, digest: str | None = None) -> str:
        """The path of a GGML_RPC_FILES list of `files`, with their real digests unless another is given."""
        self._count += 1
        lines = [f"{digest or digest_of(file)} {file.stat().st_size} {file}\n" for file in files]
        path = self.folder / f"files-{self._count}"
        path.write_text("".join(lines))
        return str(path)

    def worker(
        self,
        *,
        files: str = "",
        peers: Mapping[str, str] | None = None,
        push: str = "",
        devices: str = "CPU",
        memory: int | None = None,
    ) -> Worker:
        """A worker that listens. `files`, `peers`, `push` and `memory` (leased bytes) go into its environment."""
        endpoint = self.endpoint()
        host, _, port = ("", "", "") if endpoint.startswith("/") else endpoint.partition(":")
        listen = ["--host", host, "--port", port] if port else ["--host", endpoint]
        command = [str(self._programs / "ggml-rpc-server"), *listen, "-t", str(self._threads), "-d", devices]
        environment = _variables(files, peers, push)
        if memory is not None:
            environment["GGML_RPC_MEMORY"] = str(memory)
        child = self._stack.enter_context(Child("worker", command, self.folder, environment))
        worker = Worker(child, endpoint)
        child.wait_for("listening socket", worker.listens, TIMEOUT_S)
        return worker

    def start_host(
        self,
        model: Path,
        workers: Sequence[str] = (),
        *options: str,
        files: str = "",
        peers: Mapping[str, str] | None = None,
        context: int = 2048,
    ) -> Host:
        """A llama-server for `model` whose layers are on the `workers` (endpoints); it may be loading yet."""
        path = str(self.folder / f"host-{time.monotonic_ns()}.sock")
        threads = str(self._threads)
        command = [str(self._programs / "llama-server"), "--model", str(model), "--host", path]
        command += ["--threads", threads, "--threads-batch", threads, "--ctx-size", str(context), "--parallel", "1"]
        command += ["--fit", "off", "--offline", "--no-webui", "--cache-ram", "0"]
        if workers:
            command += ["--rpc", ",".join(workers), "--gpu-layers", "999"]
        child = Child("host", [*command, *options], self.folder, _variables(files, peers, ""))
        return Host(self._stack.enter_context(child), path)

    def host_like(self, words: Sequence[str], workers: Sequence[str]) -> Host:
        """A llama-server with the arguments `words` of another one, on a socket and with `workers` of its own."""
        path = str(self.folder / f"host-{time.monotonic_ns()}.sock")
        command = [str(self._programs / "llama-server"), *words]
        for option, value in (("--host", path), ("--rpc", ",".join(workers))):
            command[command.index(option) + 1] = value
        child = Child("host", command, self.folder, ENVIRONMENT)
        host = Host(self._stack.enter_context(child), path)
        host.wait_until_healthy()
        return host

    def host(self, *arguments: Any, **options: Any) -> Host:
        """The same once it answers."""
        host = self.start_host(*arguments, **options)
        host.wait_until_healthy()
        return host


class Worker:
    """A running ggml-rpc-server."""

    def __init__(self, child: Child, endpoint: str) -> None:
        self.child = child
        self.endpoint = endpoint

    def listens(self) -> bool:
        """Whether it takes connections. Raises OSError when not."""
        connect(self.endpoint).close()
        return True


class Host:
    """A running llama-server on a Unix socket. `load_seconds` is from its start until it was healthy."""

    def __init__(self, child: Child, path: str) -> None:
        self.child = child
        self.load_seconds = float("nan")
        self._path = path

    def wait_until_healthy(self) -> None:
        """Raises BenchError with the end of its log if it ends first."""
        self.child.wait_for("health", self._healthy, TIMEOUT_S, every=0.002)
        self.load_seconds = time.monotonic() - self.child.started

    def _healthy(self) -> bool:
        with self._request("GET", "/health") as reply:
            return reply.status == 200

    def complete(self, prompt: str, tokens: int, **more: Any) -> Any:
        """The JSON answered to a greedy completion of exactly `tokens` tokens, nothing cached."""
        with self._request("POST", "/completion", _body(prompt, tokens) | more) as reply:
            return json.load(reply)

    def stream(self, prompt: str, tokens: int) -> Iterator[Any]:
        """The same as a stream of events, an error among them."""
        with self._request("POST", "/completion", _body(prompt, tokens) | {"stream": True}) as reply:
            for line in reply:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    @contextmanager
    def _request(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self._path)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            yield connection.getresponse()
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def digest_of(file: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def disk_reads(child: Child) -> int | None:
    """Bytes that a process has had read from disks so far; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    return int(child.process.io_counters().read_bytes)


def _body(prompt: str, tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}


def _variables(files: str, peers: Mapping[str, str] | None, push: str) -> dict[str, str]:
    told = {"GGML_RPC_FILES": files, "GGML_RPC_PUSH": push}
    if peers:
        told["GGML_RPC_PEERS"] = ",".join(f"{name}={endpoint}" for name, endpoint in peers.items())
    return ENVIRONMENT | {name: value for name, value in told.items() if value}
