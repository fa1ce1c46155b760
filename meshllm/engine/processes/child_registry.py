"""A registry on disk of this home's child processes (pid and start time), to end leftovers after a crash.

child_reaper.py ends a child when the daemon dies. If the reaper was killed too, the next daemon of the same home ends
the processes that are still registered. The start time must match as well, because pids are reused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from pathlib import Path

import psutil

from meshllm.util.atomic_file import replace_file

logger = logging.getLogger(__name__)

# psutil derives start times from the wall clock, which may be adjusted by this much between two runs of the daemon.
START_TIME_TOLERANCE_SECONDS = 2.0


class ChildRegistry:
    """A directory with one JSON file per process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, pid: int, name: str) -> None:
        """Register a running process; a process that has ended is not registered.

        Logs a warning if the entry cannot be written: the reaper still ends the child with the daemon.
        """
        try:
            started = psutil.Process(pid).create_time()
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            entry = json.dumps({"pid": pid, "started": started, "name": name})
            replace_file(self._directory / f"{pid}.json", entry, mode=0o600)
        except psutil.NoSuchProcess:
            return
        except (OSError, psutil.Error) as error:
            logger.warning("cannot register process %d (%s): %s", pid, name, error)

    def remove(self, pid: int) -> None:
        """Remove the entry of a process that has ended. Logs a warning if that fails: `end_leftovers` removes it."""
        try:
            (self._directory / f"{pid}.json").unlink(missing_ok=True)
        except OSError as error:
            logger.warning("cannot remove the entry of process %d: %s", pid, error)

    def end_leftovers(self) -> list[str]:
        """SIGKILL the registered process groups that still run, and remove all entries. Returns the killed names."""
        ended = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                pid, started, name = int(entry["pid"]), float(entry["started"]), str(entry["name"])
            except (OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
                continue
            if is_same_process(pid, started) and kill_group(pid):
                ended.append(name)
            path.unlink(missing_ok=True)
        return ended


def is_same_process(pid: int, started: float) -> bool:
    """Whether `pid` is alive and is the process that started at `started` (seconds since the epoch)."""
    if pid <= 1:
        return False
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - started) <= START_TIME_TOLERANCE_SECONDS
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def kill_group(pid: int) -> bool:
    """SIGKILL the process group led by `pid`. Returns whether it existed and could be signalled."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
        return True
    return False
