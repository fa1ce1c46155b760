"""The mesh that clients are tried with: a host with a small model of 32,768 tokens, and a client node without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from meshllm import paths
from scripts.client_trials.trial import Trial
from tests.daemons import MODEL, PROGRAM, Daemon, daemon
from tests.gguf_edit import with_value

NAME = "trial-model"
CONTEXT = 32_768
# Of a client that has ended by itself, for the rest of its process group.
END_SECONDS = 10.0
SHOWN = 400
# The status of a request whose caller has gone.
LEFT = 499


@dataclass(frozen=True)
class Outcome:
    """How a trial went. `problem`: empty if it works. `statuses`: of its requests; `tokens`: of their prompts."""

    problem: str
    seconds: float
    statuses: tuple[int, ...] = ()
    tokens: int = 0

    @property
    def works(self) -> bool:
        """Whether the client did what was asked."""
        return not self.problem


@dataclass
class Place:
    """The two nodes, and where the clients' homes are."""

    folder: Path
    host: Daemon
    node: Daemon

    def try_client(self, trial: Trial, seconds: float) -> Outcome:
        """Run a client for at most `seconds`. It must end with status 0, and none of its requests may fail."""
        home = self.folder / "homes" / trial.name
        home.mkdir(parents=True)
        values = {"base": self.node.base_url.removesuffix("/v1").replace("localhost", "127.0.0.1"), "model": NAME}
        env = trial.environment(home, values) | {"MESH_LLM_HOME": str(self.node.home)}
        seen = {request["id"] for request in self._requests()}
        begun = time.monotonic()
        status, said = run_client(trial.command(PROGRAM, values), env, home, self.folder / f"{trial.name}.txt", seconds)
        took = time.monotonic() - begun
        own = [request for request in self._requests() if request["id"] not in seen]
        statuses = tuple(sorted(request["status"] or 0 for request in own))
        tokens = sum(request["prompt_tokens"] or 0 for request in own)
        written = sum(request["completion_tokens"] or 0 for request in own)
        # Some leave a side request, such as the title of the session, when they have their answer.
        failed = [request for request in own if request["status"] not in (200, LEFT)]
        if status is None:
            problem = f"no end within {seconds:.0f} s"
        elif status:
            problem = f"status {status}: {' '.join(said.split())[-SHOWN:]}"
        elif failed:
            problem = f"{failed[0]['path']} {failed[0]['status']}: {failed[0]['error']}"
        else:
            problem = "" if written else "it asked for nothing"
        return Outcome(problem, round(took, 1), statuses, tokens)

    def _requests(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self.node.owner_request("/api/requests")) as reply:
            found = json.loads(reply.read())["requests"]
        return [request for request in found if request["path"].startswith(("/v1/", "/api/"))]


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """The mesh, below `folder`, within the block."""
    model = folder / f"{NAME}.gguf"
    with_value(next(paths.models().glob(f"{MODEL}*.gguf")), model, "llama.context_length", CONTEXT)
    none = folder / "none"
    none.mkdir()
    environment = {"MESH_LLM_MODELS": str(none)}
    size = ("--ctx-size", str(CONTEXT))
    with daemon(folder / "host", "--model", str(model), *size, environment=environment) as host:
        host.wait_until_serving(NAME)
        invite = folder / "invite"
        asked = {**os.environ, "MESH_LLM_HOME": str(host.home)}
        invite.write_text(
            subprocess.run([PROGRAM, "invite"], env=asked, check=True, capture_output=True, text=True).stdout
        )
        with daemon(folder / "client", "--client", "--join", f"@{invite}", environment=environment) as node:
            _until_model(node)
            yield Place(folder, host, node)


def _until_model(node: Daemon) -> None:
    """Until the client node knows the model."""
    for _ in range(600):
        with urllib.request.urlopen(f"{node.base_url}/models") as reply:
            if any(card["id"] == NAME for card in json.loads(reply.read())["data"]):
                return
        time.sleep(0.1)
    raise AssertionError("the client node knows no model")


def run_client(words: list[str], env: dict[str, str], home: Path, log: Path, seconds: float) -> tuple[int | None, str]:
    """Status (None: it took too long) and output of a command, in a process group of its own that ends with it, also if
    this call is ended by an exception, as the one that SIGTERM raises."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, env=env, cwd=home, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            try:
                _end(process)
            finally:
                _end_those_that_left(env["HOME"])
    return status, log.read_text(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its group; at once if the patience with it is interrupted by another signal."""
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_those_that_left(home: str) -> None:
    """Kill what a client has started in a session of its own (Cline's hub): it has the client's home."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME") == home:
                process.kill()
