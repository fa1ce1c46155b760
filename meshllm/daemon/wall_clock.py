"""The calendar time by which expiries are judged: it never falls behind the latest time that this node has seen.

A clock that was set back, or that starts in the past (a board without a battery), would let expired invites and
certificates in again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from meshllm.util.atomic_file import replace_file

log = logging.getLogger(__name__)

CLOCK_FILE: Final = "clock"
# `due` asks for a save this often: what a crash can lose.
SAVE_SECONDS: Final = 300.0
# A clock that is further behind is reported at the start.
TOLERANCE_SECONDS: Final = 300.0
# 1 January 2100: a file that says more is damaged.
MAX_TIME: Final = 4_102_444_800
_MAX_BYTES: Final = 100


def system_time() -> float:
    """The system's clock, in unix seconds."""
    return datetime.now(UTC).timestamp()


class WallClock:
    """`now()` is the system's clock or the latest time ever seen, the later one. Not thread-safe, except `save`."""

    def __init__(self, home: Path, clock: Callable[[], float] = system_time) -> None:
        """Reads the file in `home` (blocks for a moment); a missing or damaged one counts for nothing."""
        self._path = home / CLOCK_FILE
        self._clock = clock
        self._latest = self._saved = _read(self._path)
        behind = self._latest - clock()
        if behind > TOLERANCE_SECONDS:
            log.warning(
                "the clock of this machine is %.0f s behind the latest time that this node has seen; expiries are "
                "judged by the later one. Set the clock; if it was in the future once, remove %s and restart the node.",
                behind,
                self._path,
            )

    def now(self) -> float:
        """Unix seconds; never less than at an earlier call, also of an earlier run."""
        self._latest = max(self._latest, self._clock())
        return self._latest

    def due(self) -> bool:
        """Whether `save` should be called."""
        return self.now() - self._saved >= SAVE_SECONDS

    def save(self) -> None:
        """Write the latest time to the home; blocks. A disk that does not take it is logged."""
        latest = int(self.now())
        try:
            replace_file(self._path, f"{latest}\n", mode=0o600)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror or error)
        else:
            self._saved = latest


def _read(path: Path) -> float:
    try:
        with path.open("rb") as file:
            found = int(file.read(_MAX_BYTES))
    except (OSError, ValueError):
        return 0.0
    return float(found) if 0 <= found <= MAX_TIME else 0.0
