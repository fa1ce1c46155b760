"""The measured programs as child processes.

Invariant: each leads its own process group and is stopped by its id, with SIGTERM first; when the `with` block ends
(also by an error or Ctrl-C), no process is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from .native import BenchError

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _leash() -> list[str]:
    """A command prefix that, on Linux, ends the command when this program is killed."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


class Child:
    """A running program. Its standard output and error go to a file in `scratch`; its input is a pipe we hold."""

    def __init__(self, name: str, command: list[str], scratch: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = scratch / f"{name}-{time.monotonic_ns()}.log"
        self.started = time.monotonic()
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [*_leash(), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.process = psutil.Process(self._popen.pid)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def write(self, text: str) -> None:
        """On its standard input. Raises BenchError if it has ended."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(text.encode())
            self._popen.stdin.flush()
        except OSError as error:
            raise BenchError(f"{self.name} has ended:\n{self.said()}") from error

    def cpu_seconds(self) -> float:
        """User and system time of this process alone, without its children, since it started.

        On Linux the scheduler's own count, in nanoseconds: `cpu_times` has ticks of 10 ms.
        """
        with contextlib.suppress(OSError):
            threads = Path(f"/proc/{self._popen.pid}/task").iterdir()
            return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Resident memory of this process alone."""
        return int(self.process.memory_info().rss)

    def said(self, lines: int = 12) -> str:
        """The end of its output, for a message to the user."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_for(self, what: str, fact: Callable[[], Any], seconds: float = 30.0, every: float = 0.02) -> Any:
        """Ask `fact` until it answers something true, and return that. An OSError or ValueError is a no.

        Raises BenchError with the end of the log when the child ends first or the time runs out.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                if answer := fact():
                    return answer
            if self._popen.poll() is not None:
                raise BenchError(f"{self.name} ended with {self._popen.returncode} before {what}:\n{self.said()}")
            time.sleep(every)
        raise BenchError(f"{self.name}: no {what} within {seconds:.0f} s:\n{self.said()}")

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM, then SIGKILL to its group. Idempotent."""
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()
        try:
            self._popen.terminate()
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()


def owner_headers(home: Path) -> dict[str, str]:
    """The header with the token of the daemon that runs in `home`, which gets the whole status from its console."""
    try:
        return {"x-mesh-llm-token": str(json.loads((home / "daemon.json").read_text())["token"])}
    except (OSError, ValueError, KeyError):
        return {}  # it does not listen yet, or is a version without tokens


def get_json(port: int, path: str, headers: dict[str, str] | None = None) -> Any:
    """The JSON at a loopback port. Raises OSError without a reply (an HTTP error status included)."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    with _DIRECT.open(request, timeout=5) as reply:
        return json.load(reply)


def post_json(port: int, path: str, body: dict[str, Any], seconds: float) -> Any:
    """The JSON answered to `body`. Raises OSError as `get_json` does."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with _DIRECT.open(request, timeout=seconds) as reply:
        return json.load(reply)


def listening(port: int) -> bool:
    """Whether a connection to that loopback port is accepted."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
