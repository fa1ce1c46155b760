"""Ends a daemon whose home was deleted or replaced: its key, its lock and the sockets of its engines were there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from meshllm.daemon.pidfile import LOCK_FILE

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0


class HomeWatch:
    """Looks at `home` every few seconds. `gone`: it is not the folder any more that it was."""

    def __init__(self, home: Path, on_gone: Callable[[], object], seconds: float = CHECK_SECONDS) -> None:
        """`on_gone` is called once."""
        self.gone = False
        self._home = home
        self._on_gone = on_gone
        self._seconds = seconds
        self._folder = self._look()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _check(self) -> None:
        if self._look() != self._folder:
            self.gone = True
            log.error("the home %s was deleted or replaced: this node stops", self._home)
            self._on_gone()
            return
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._check)

    def _look(self) -> tuple[int, ...] | None:
        """What tells the folder from another one. A new folder may get the number of the old one, its files too."""
        try:
            found, lock = self._home.stat(), (self._home / LOCK_FILE).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # a disk that does not answer for a moment: the folder may be the same
            return self._folder
        return found.st_dev, found.st_ino, lock.st_ino
