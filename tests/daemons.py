"""Real daemons for tests: `mesh-llm` as a child process with its own home and ports, stopped at the end of the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import psutil

MODEL = "SmolLM2-135M-Instruct"
PROGRAM = Path(sys.executable).with_name("mesh-llm")
# Generous, because it only matters when something is broken: a first start may load the model on a busy machine.
OPEN_WAIT_SECONDS = 180.0


class Daemon:
    """A running `mesh-llm --json`. Its lines are read in the background and kept in `lines`.

    `prefix`: a command that runs the daemon as the same process (a network namespace, say); `stdin`: its input.
    """

    def __init__(
        self,
        home: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        stdin: str = "",
    ) -> None:
        self.home = home
        self.model = MODEL
        self.lines: list[dict[str, Any]] = []
        self._arriving: Queue[dict[str, Any] | None] = Queue()
        # A daemon that is killed cannot clear away its temporary files; a short path, for the sockets in it.
        self._temporary = tempfile.TemporaryDirectory(prefix="mesh-test-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [*prefix, str(PROGRAM), "--json", "--port", "0", "--console", "0", *arguments],
            env={**os.environ, "MESH_LLM_HOME": str(home), "TMPDIR": self._temporary.name, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(stdin)
        self.process.stdin.close()
        self._readers = [Thread(target=self._read, daemon=True), Thread(target=self._read_errors, daemon=True)]
        self.errors = ""
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._arriving.put(json.loads(line))
        self._arriving.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait for a line that `wanted` accepts, and return it."""
        while True:
            try:
                line = self._arriving.get(timeout=OPEN_WAIT_SECONDS)
            except Empty:
                raise AssertionError(f"timed out waiting for {what}; lines so far: {self.lines[-20:]}") from None
            if line is None:
                raise AssertionError(f"ended before {what}: {self.errors or self.lines[-20:]}")
            self.lines.append(line)
            if wanted(line):
                return line

    def wait_until_listening(self) -> Daemon:
        """Wait until the API and the console answer."""
        line = self.wait_for(lambda line: line["event"] == "listening", "listening")
        self.base_url, self.console_url = line["api"], line["console"]
        return self

    @property
    def token(self) -> str:
        """The token of this run, with which its console takes a caller for the owner."""
        return str(json.loads((self.home / "daemon.json").read_text())["token"])

    @property
    def owner(self) -> dict[str, str]:
        """The header of the owner's requests to the console."""
        return {"x-mesh-llm-token": self.token}

    def owner_request(self, path: str) -> urllib.request.Request:
        """A request of the owner to the console, for `urlopen`."""
        return urllib.request.Request(self.console_url + path, headers=self.owner)

    def wait_until_serving(self, model: str = MODEL, restarts: int = 0) -> Daemon:
        """Wait until `model` is served, after at least `restarts` restarts of its engine."""
        self.wait_for(
            lambda line: (
                line["event"] == "model"
                and line["model"] == model
                and line["phase"] == "serving"
                and line["restarts"] >= restarts
            ),
            f"{model} being served",
        )
        return self

    def children(self) -> list[psutil.Process]:
        """All descendants of the daemon's process."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        """Stop it with SIGINT and return its exit status. All its descendants must be gone by then."""
        below = self.children() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(OPEN_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            for process in below:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.kill()
            log = self.home / "logs" / "daemon.log"
            raise AssertionError(
                f"did not stop; it logged: {log.read_text()[-4000:] if log.exists() else ''}"
            ) from None
        self._finish()
        left = [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        assert left == [], f"left behind: {left}"
        return status

    def _finish(self) -> None:
        for reader in self._readers:
            reader.join(OPEN_WAIT_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self._temporary.cleanup()

    def kill(self) -> None:
        """Kill it with SIGKILL and wait for its end."""
        self.process.kill()
        self.process.wait(OPEN_WAIT_SECONDS)
        self._finish()


def wait_for_text(process: subprocess.Popen[bytes], path: Path, text: str) -> None:
    """Until the log has `text`, while the process lives."""
    while not (path.exists() and text in path.read_text()):
        try:
            psutil.Process(process.pid).wait(0.02)
        except psutil.TimeoutExpired:
            continue
        raise AssertionError(f"ended before {text!r}: {path.read_text() if path.exists() else 'no log'}")


@contextmanager
def daemon(home: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
    """A daemon that listens; it is stopped at the end of the block."""
    started = Daemon(home, *arguments, environment=environment)
    try:
        yield started.wait_until_listening()
    finally:
        if started.process.poll() is None:
            started.stop()
        elif started._readers[0].is_alive() or not started.process.stdout.closed:  # type: ignore[union-attr]
            started._finish()
