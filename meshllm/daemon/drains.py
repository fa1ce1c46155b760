"""What the requests do with the engines here: waits until a process has none, before it is stopped or saved, until no
engine works, and until one does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

# The longest answer: a process that still has one after this is stopped.
DRAIN_SECONDS = 600.0
# Requests that hold no slot (counting tokens) end without a notice.
CHECK_SECONDS = 1.0


def _never(*_process: object) -> bool:
    return False


class Drains:
    """Waits for engine processes that the gateway no longer sends requests to, and for all of them to be idle."""

    def __init__(
        self,
        is_busy: Callable[[str, int], bool],
        had_guest: Callable[[str, int], bool] = _never,
        works: Callable[[], bool] = _never,
        within: float = DRAIN_SECONDS,
    ) -> None:
        """`is_busy`: whether the engine process (model, generation) has a request; `had_guest`: whether it has had one
        of a guest; `works`: whether any process of this node has one. `within`: the longest wait for a process (s)."""
        self._is_busy = is_busy
        self.had_guest = had_guest
        self._works = works
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
                    await self._change()

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

    async def until_idle(self) -> None:
        """Return when no engine of this node has a request."""
        while self._works():
            await self._change()

    async def until_busy(self) -> None:
        """Return when an engine of this node has a request."""
        while not self._works():
            await self._change()

    async def _change(self) -> None:
        """Wait for a notice of a change, or for the time of the next look."""
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_SECONDS):
                await changed.wait()


NO_REQUESTS = Drains(_never)
"""For a daemon without callers."""
