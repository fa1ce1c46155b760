"""One daemon per home: the lock file, and `daemon.json` (mode 0600) with its process id, its ports and the token of
this run for other commands of the same user."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import filelock
import psutil

from meshllm.engine.processes.child_registry import is_same_process
from meshllm.errors import EnvironmentFailure, NotRunning, UsageError
from meshllm.util.atomic_file import replace_file

PID_FILE, LOCK_FILE = "daemon.json", "daemon.lock"
STOP_POLL_SECONDS = 0.02
# An idle node ends sooner than that.
STOP_TELL_SECONDS = 0.7
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class RunningInstance:
    """A running daemon: process id, start time (unix seconds), ports of API and console, and the token with which the
    console takes a caller for the owner."""

    pid: int
    started: float
    port: int
    console: int
    token: str = field(default="", repr=False)

    @property
    def page(self) -> str:
        """The URL that opens the console's page as the owner. A browser sends the part behind `#` to no server."""
        return owner_page(f"http://localhost:{self.console}", self.token)

    def alive(self) -> bool:
        """Whether this process still runs; a later process with the same id does not count."""
        return is_same_process(self.pid, self.started)


def owner_page(console: str, token: str) -> str:
    """The URL that opens the page at `console` with the token of the run."""
    return f"{console}/#token={token}"


def new_token() -> str:
    """The token of a run: 32 random bytes, as text for a header and a URL."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class HomeLock:
    """Locks a home for the life of this process; the kernel releases the lock when the process dies."""

    def __init__(self, home: Path) -> None:
        """Raises UsageError if another daemon holds `home`, or `home` cannot be written."""
        self._pid_file = home / PID_FILE
        self._lock = filelock.FileLock(home / LOCK_FILE, blocking=False, mode=0o600)
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(home)
            self._lock.acquire()
        except filelock.Timeout as error:
            other = read(home)
            who = f" (process {other.pid}, API on port {other.port})" if other else ""
            raise UsageError(
                f"A mesh-llm is already running with the home {home}{who}.",
                advice="Stop it with 'mesh-llm stop', or set MESH_LLM_HOME to another directory for a second node.",
            ) from error
        except OSError as error:  # after Timeout, which is one
            raise UsageError(
                f"The home {home} cannot be used: {error.strerror or error}.",
                advice="Make it a folder that you may write to, or set MESH_LLM_HOME to one.",
            ) from error

    def announce(self, port: int, console: int, token: str = "") -> None:
        """Write process id, ports and token to `daemon.json`. Raises EnvironmentFailure."""
        started = psutil.Process().create_time()
        text = json.dumps(asdict(RunningInstance(os.getpid(), started, port, console, token)))
        try:
            replace_file(self._pid_file, text, mode=0o600)
        except OSError as error:
            raise EnvironmentFailure(
                f"{self._pid_file} cannot be written: {error.strerror or error}.",
                advice="Free disk space, or make the home a folder that you may write to.",
            ) from error

    def release(self) -> None:
        """Remove `daemon.json` and release the lock. In a home that was replaced, the file may be another daemon's."""
        running = read(self._pid_file.parent)
        if running is None or running.pid == os.getpid():
            with contextlib.suppress(OSError):
                self._pid_file.unlink()
        self._lock.release()


def check_private(home: Path) -> None:
    """Raises UsageError if other users of the machine may write into `home`: they could replace its keys."""
    found = home.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise UsageError(
            f"The home {home} belongs to another user of this machine.",
            advice=f"Take it over (chown {os.geteuid()} {home}), or set MESH_LLM_HOME to a folder of your own.",
        )
    if found.st_mode & stat.S_IWOTH:
        raise UsageError(
            f"Every user of this machine can write into the home {home}.",
            advice=f"Keep the others out (chmod 700 {home}), or set MESH_LLM_HOME to a folder of your own.",
        )


def read(home: Path) -> RunningInstance | None:
    """The daemon that runs with `home`, or None."""
    try:
        note = json.loads((home / PID_FILE).read_text(encoding="utf-8"))
        instance = RunningInstance(
            int(note["pid"]),
            float(note["started"]),
            int(note["port"]),
            int(note["console"]),
            str(note.get("token", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return instance if instance.alive() else None


def stop(
    home: Path, *, within: float, on_wait: Callable[[RunningInstance], None] = lambda instance: None
) -> RunningInstance:
    """Ask the daemon of `home` to stop (SIGTERM) and wait `within` seconds. `on_wait`: called once if it takes a while.

    Raises NotRunning, TimeoutError, EnvironmentFailure (not allowed).
    """
    instance = read(home)
    if instance is None:
        raise NotRunning(
            f"No mesh-llm is running with the home {home}.",
            advice="If the node has another home, set MESH_LLM_HOME to it.",
        )
    try:
        os.kill(instance.pid, signal.SIGTERM)
    except ProcessLookupError:
        return instance
    except PermissionError as error:
        raise EnvironmentFailure(
            f"Process {instance.pid} of the home {home} belongs to another user and cannot be stopped.",
            advice="Run the command as that user.",
        ) from error
    begun = time.monotonic()
    deadline, told = begun + within, False
    # Polled: the process is not our child, so that it cannot be waited for.
    while instance.alive():
        if not told and time.monotonic() - begun > STOP_TELL_SECONDS:
            told = True
            on_wait(instance)
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {instance.pid} has not ended within {within:.0f} s")
        time.sleep(STOP_POLL_SECONDS)
    return instance
