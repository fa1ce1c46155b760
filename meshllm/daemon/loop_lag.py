"""Event-loop lag: how late a timer of the event loop runs, sampled once a second."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

log = logging.getLogger(__name__)

SAMPLE_SECONDS: Final = 1.0
WINDOW_SAMPLES: Final = 60
# A stream's reader notices a stop of half a second.
REPORT_SECONDS: Final = 0.5
# One line at most in so many seconds.
REPORT_PAUSE: Final = 60.0


class LoopLag:
    """The lag of the running loop, in seconds: `last` of the newest sample, `worst()` of the last 60 samples,
    `total` of all samples. One timer a second; nothing else is allocated."""

    def __init__(self, sample: float = SAMPLE_SECONDS) -> None:
        self._loop = asyncio.get_running_loop()
        self._sample = sample
        self._window = [0.0] * WINDOW_SAMPLES
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._reported = float("-inf")
        self.last = 0.0
        self.total = 0.0
        self.samples = 0

    def start(self) -> None:
        """Begin to sample."""
        if self._timer is None:
            self._next(self._loop.time())

    def stop(self) -> None:
        """Take the timer away."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def worst(self) -> float:
        """The greatest lag of the last minute of samples."""
        return max(self._window)

    def _next(self, now: float) -> None:
        self._due = now + self._sample
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        self.last = max(0.0, now - self._due)
        self.total += self.last
        self._window[self.samples % WINDOW_SAMPLES] = self.last
        self.samples += 1
        if self.last >= REPORT_SECONDS and now - self._reported >= REPORT_PAUSE:
            self._reported = now
            log.info("the event loop was blocked", extra={"fields": {"seconds": round(self.last, 3)}})
        self._next(now)
