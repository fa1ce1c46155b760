"""Waits until an engine process has no request, before it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

# The longest answer: a process that still has one after this is stopped.
DRAIN_SECONDS = 600.0
# Requests that hold no slot (counting tokens) end without a notice.
CHECK_SECONDS = 1.0


class Drains:
    """Waits for engine processes that the gateway no longer sends requests to."""

    def __init__(self, is_busy: Callable[[str, int], bool], within: float = DRAIN_SECONDS) -> None:
        """`is_busy`: whether the engine process (model, generation) has a request. `within`: the longest wait (s)."""
        self._is_busy = is_busy
        self._within = within
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Requests began or ended."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def drained(self, model: str, generation: int) -> None:
        """Return when that process has no request."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._within):
                while self._is_busy(model, generation):
                    changed = self._changed
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(CHECK_SECONDS):
                            await changed.wait()
