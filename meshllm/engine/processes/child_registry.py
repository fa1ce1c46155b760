"""Which processes are ours: pid and start time of each, on disk, so that a crash leaves nothing behind.

The guard ends an engine process when the daemon dies. Should the guard be killed as well, the next daemon of the same
home ends what the ledger still lists. A process is ours only if its start time matches too: pids are used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import psutil

from meshllm.util.atomic_file import replace_file

# psutil derives start times from the wall clock, which may be stepped by this much between two daemons. A pid that is
# used again within such a time is another of our own processes or nobody's luck.
START_TIME_TOLERANCE_SECONDS = 2.0


class ChildRegistry:
    """A directory with one small file per process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, pid: int, name: str) -> None:
        """Write down a process that runs. One that is already gone is not written down."""
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(pid).create_time()
            self._directory.mkdir(parents=True, exist_ok=True)
            entry = json.dumps({"pid": pid, "started": started, "name": name})
            replace_file(self._directory / f"{pid}.json", entry)

    def remove(self, pid: int) -> None:
        """Strike out a process that has ended."""
        (self._directory / f"{pid}.json").unlink(missing_ok=True)

    def end_leftovers(self) -> list[str]:
        """Kill (SIGKILL, with their process groups) what an earlier daemon left behind; returns their names."""
        ended = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                pid, started, name = int(entry["pid"]), float(entry["started"]), str(entry["name"])
            except (OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
                continue
            if is_same_process(pid, started) and end_group(pid):
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


def end_group(pid: int) -> bool:
    """SIGKILL the process group that `pid` leads; whether there was one that we may signal."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
        return True
    return False
