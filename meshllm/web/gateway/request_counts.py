"""Counts the requests of this node's callers by model and reports them in batches, for the mesh's demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

# The counts are reported at most this often: 1,000 requests a second cost what two do.
BATCH_SECONDS = 0.5
# Names in one batch. Callers can invent names; the core drops those that no node knows.
MAX_NAMES = 64
# The longest name that a record can have, in bytes.
MAX_NAME_BYTES = 256


class RequestCounts:
    """Requests since the last batch."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_requests: Callable[[Mapping[str, int]], None] | None
    ) -> None:
        """`on_requests` is called with the number of requests for each model; None: they are not counted."""
        self._loop = loop
        self._on_requests = on_requests
        self._counts: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, model: str) -> None:
        """A caller asked for `model`."""
        if self._on_requests is None:
            return
        counts = self._counts
        if model in counts:
            counts[model] += 1  # the timer runs
            return
        if len(counts) >= MAX_NAMES or len(model) > MAX_NAME_BYTES:
            return
        counts[model] = 1
        if self._timer is None:
            self._timer = self._loop.call_later(BATCH_SECONDS, self._report)

    def close(self) -> None:
        """Report nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _report(self) -> None:
        self._timer = None
        counts, self._counts = self._counts, {}
        if self._on_requests is not None:
            self._on_requests(counts)
