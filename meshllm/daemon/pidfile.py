"""One daemon per home: the lock that holds it, and the note that tells other commands where it is."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import psutil

from meshllm.engine.processes.child_registry import is_same_process
from meshllm.errors import NotRunning, UsageError
from meshllm.util.atomic_file import replace_file

NOTE = "daemon.json"
STOP_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class RunningInstance:
    """A running daemon: its process and where it listens."""

    pid: int
    started: float
    port: int
    console: int

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return is_same_process(self.pid, self.started)


class HomeLock:
    """Holds a home for as long as this process lives, whatever becomes of it: the kernel lets go of the lock."""

    def __init__(self, home: Path) -> None:
        """Raises UsageError when another daemon holds `home`, and where it cannot be written."""
        self._note = home / NOTE
        self._lock = filelock.FileLock(home / "daemon.lock", blocking=False)
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout as error:
            other = read(home)
            who = f" (process {other.pid}, API on port {other.port})" if other else ""
            raise UsageError(
                f"A mesh-llm is already running with the home {home}{who}.",
                advice="End it with 'mesh-llm stop', or set MESH_LLM_HOME to another directory for a second node.",
            ) from error
        except OSError as error:  # after Timeout, which is one
            raise UsageError(
                f"The home {home} cannot be used: {error.strerror or error}.",
                advice="Make it a folder that you may write to, or set MESH_LLM_HOME to one.",
            ) from error

    def announce(self, port: int, console: int) -> None:
        """Write down where this daemon listens."""
        started = psutil.Process().create_time()
        text = json.dumps(asdict(RunningInstance(os.getpid(), started, port, console)))
        replace_file(self._note, text)

    def release(self) -> None:
        """The daemon ends."""
        self._note.unlink(missing_ok=True)
        self._lock.release()


def read(home: Path) -> RunningInstance | None:
    """The daemon that runs with `home`, or None."""
    try:
        told = json.loads((home / NOTE).read_text(encoding="utf-8"))
        instance = RunningInstance(int(told["pid"]), float(told["started"]), int(told["port"]), int(told["console"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return instance if instance.alive() else None


def stop(home: Path, *, within: float) -> RunningInstance:
    """Ask the daemon of `home` to end, and wait `within` seconds for it. Raises NotRunning, TimeoutError."""
    instance = read(home)
    if instance is None:
        raise NotRunning(
            f"No mesh-llm runs with the home {home}.", advice="MESH_LLM_HOME says whose daemon is meant, if it is set."
        )
    os.kill(instance.pid, signal.SIGTERM)
    deadline = time.monotonic() + within
    # Another's child cannot be waited for; and one whose parent does not collect it stays a zombie for good.
    while instance.alive():
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {instance.pid} has not ended within {within:.0f} s")
        time.sleep(STOP_POLL_SECONDS)
    return instance
