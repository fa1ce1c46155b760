"""Writes what is to be remembered, off the event loop.

Law: in the order it was asked for, one at a time; what was asked for before `close` is on the disk after it. A disk
that will not take it is spoken of, and nothing ends because of it.
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
    """A queue of things to write; a thread only while there are some."""

    def __init__(self) -> None:
        self._owner = Owner("keeper")
        self._waiting: deque[Callable[[], None]] = deque()
        self._writing = False

    def keep(self, save: Callable[[], None]) -> None:
        """Have `save` (which blocks) called soon, after all that were asked for before. Not after `close`."""
        self._waiting.append(save)
        if not self._writing:
            self._writing = True
            self._owner.start(self._write(), "write")

    async def _write(self) -> None:
        try:
            while self._waiting:
                save = self._waiting.popleft()
                await in_thread(functools.partial(_saved, save), "keeper")
        finally:
            self._writing = False

    async def close(self) -> None:
        """All of it is written."""
        # The one that is being written is waited for by its task.
        await self._owner.close()
        while self._waiting:
            _saved(self._waiting.popleft())


def _saved(save: Callable[[], None], stop: object = None) -> None:
    try:
        save()
    except MeshError as error:
        log.error("%s", error)
    except Exception:
        log.exception("keeping something failed")
