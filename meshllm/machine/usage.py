"""What processes of this machine use: memory of one process, and the processor beside some of them.

Nothing here raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from .resources import ROOT

_PSS: Final = "Pss:"


def memory_used(pid: int, root: Path = ROOT) -> int:
    """Bytes of RAM that a process uses, with its part of the pages that it shares (Linux: PSS; elsewhere: its resident
    pages). 0 if there is no such process. The kernel walks the pages: some milliseconds for each gigabyte."""
    with contextlib.suppress(OSError, ValueError):
        text = (root / f"proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
        for line in text.splitlines():
            if line.startswith(_PSS):
                return int(line.split()[1]) << 10
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


class OtherPrograms:
    """The part of this machine's processors that programs other than some processes use."""

    def __init__(self) -> None:
        self._busy = self._total = 0.0
        self._own: dict[int, float] = {}
        self._started = False

    def read(self, own: Iterable[int]) -> float | None:
        """0 to 1, since the last call; None at the first one, and if no time has passed. `own`: ids of the processes
        that do not count."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        total = sum(times[:8])  # guest times are part of user and nice
        busy = total - idle
        seconds = {pid: _seconds(pid) for pid in own}
        # A process that was not there before began in between: all its time counts.
        grown = sum(now - self._own.get(pid, 0.0 if self._started else now) for pid, now in seconds.items())
        elapsed, used = total - self._total, busy - self._busy
        known = self._started
        self._total, self._busy, self._own, self._started = total, busy, seconds, True
        if not known or elapsed <= 0:
            return None
        return min(1.0, max(0.0, (used - max(0.0, grown)) / elapsed))


def _seconds(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
