"""Calls subscribers so that one that raises is logged, counted and skipped, and the others still run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

# A subscriber that fails at each call is logged with its traceback at most this often.
REPORT_SECONDS: Final = 60.0


class Isolation:
    """Runs named calls. `failures` counts those that raised, by name; names are constants of the program."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reported: dict[str, float] = {}
        self.failures: dict[str, int] = {}

    def run(self, name: str, call: Callable[[], object]) -> bool:
        """Call `call`; False if it raised, which is logged under `name`. Cancellation and exits pass through."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - logged below
            self.failed(name, error)
            return False
        return True

    def failed(self, name: str, error: Exception) -> None:
        """Count and log a failure of `name`."""
        count = self.failures[name] = self.failures.get(name, 0) + 1
        now = self._clock()
        if now - self._reported.get(name, float("-inf")) >= REPORT_SECONDS:
            self._reported[name] = now
            log.error(
                "%s failed: this is a defect, please report it. The daemon goes on.",
                name,
                exc_info=error,
                extra={"fields": {"failures": count}},
            )
