"""Writes state files off the event loop, one at a time, in order.

Invariants: everything added before `close` is written when `close` returns. An error is logged and ends nothing.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable

from meshllm.errors import MeshError
from meshllm.tasks import Owner
from meshllm.util.threads import in_thread

log = logging.getLogger(__name__)


class StateWriter:
    """A queue of writes; there is a thread only while it is not empty."""

    def __init__(self) -> None:
        self._owner = Owner("state writer")
        self._waiting: deque[Callable[[], None]] = deque()
        self._writing = False

    def add(self, save: Callable[[], None]) -> None:
        """Call `save` (which may block) after all that were added before. Not after `close`."""
        self._waiting.append(save)
        if not self._writing:
            self._writing = True
            self._owner.start(self._write(), "write")

    async def _write(self) -> None:
        try:
            while self._waiting:
                save = self._waiting.popleft()
                await in_thread(functools.partial(_saved, save), "state writer")
        finally:
            self._writing = False

    async def close(self) -> None:
        """Wait until everything is written."""
        # The owner waits for the write under way.
        await self._owner.close()
        while self._waiting:
            _saved(self._waiting.popleft())


def _saved(save: Callable[[], None], stop: object = None) -> None:
    try:
        save()
    except MeshError as error:
        log.error("%s", error)
    except Exception:
        log.exception("writing a state file failed")
