"""What the gateway's requests do with an engine process: waits until it has none, before it is stopped or saved."""

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

    def __init__(
        self,
        is_busy: Callable[[str, int], bool],
        had_guest: Callable[[str, int], bool] = lambda model, generation: False,
        within: float = DRAIN_SECONDS,
    ) -> None:
        """`is_busy`: whether the engine process (model, generation) has a request; `had_guest`: whether it has had one
        of a guest. `within`: the longest wait (s)."""
        self._is_busy = is_busy
        self.had_guest = had_guest
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

    async def used_and_idle(self, model: str, generation: int, seconds: float) -> None:
        """Return when requests began or ended, and then none did for `seconds` and that process has none."""
        await self._changed.wait()
        while True:
            changed = self._changed
            try:
                async with asyncio.timeout(seconds):
                    await changed.wait()
            except TimeoutError:
                if not self._is_busy(model, generation):
                    return
