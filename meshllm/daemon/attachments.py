"""Launchers of agents that are attached to this node, each by an open connection; a node that was started for them ends
after the last one has gone.

A connection is closed by the system when its process ends, however it ends: `kill -9` of a launcher is noticed too. The
launcher that started the node is attached by the node's standard input from the first moment on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

from meshllm.errors import EnvironmentFailure

if TYPE_CHECKING:
    from meshllm.daemon.stopping import Stopping

log = logging.getLogger(__name__)

# Time for the next launcher after the last one has gone. Answers in progress have another 5 s to end.
GRACE_SECONDS = 5.0
# Each costs a connection of the console.
MAX_ATTACHED = 256


class Attachments:
    """Counts the attached launchers. `ends`: the node was started for them, and stops once all have gone."""

    def __init__(self, stopping: Callable[[], Stopping | None], *, ends: bool, grace: float = GRACE_SECONDS) -> None:
        """`stopping`: what stops the node; None while the node is assembled."""
        self._stopping = stopping
        self._ends = ends
        self._grace = grace
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._input: int | None = None
        self._closed = False

    def begin(self, stack: AsyncExitStack) -> Attachments:
        """Attach the launcher that started the node; `stack` closes this."""
        stack.callback(self.close)
        self.attach_input()
        return self

    @property
    def count(self) -> int:
        """The number of attached launchers."""
        return self._count

    @contextmanager
    def attach(self) -> Iterator[None]:
        """A launcher is attached within the block. Raises EnvironmentFailure if the node ends or has too many."""
        stopping = self._stopping()
        if self._closed or (stopping is not None and stopping.begun):
            raise EnvironmentFailure("This node is stopping.", advice="Start the agent again.")
        if self._count >= MAX_ATTACHED:
            raise EnvironmentFailure(f"{MAX_ATTACHED} launchers are attached to this node.", advice="End one of them.")
        self._add()
        try:
            yield
        finally:
            self._remove()

    def attach_input(self) -> None:
        """Take standard input for the connection of the launcher that started this node. Only if the node ends with
        them."""
        if not self._ends:
            return
        self._add()
        try:
            self._input = sys.stdin.fileno()
            asyncio.get_running_loop().add_reader(self._input, self._read)
        except (OSError, ValueError):  # closed, or a file
            self._input = None
            self._remove()

    def close(self) -> None:
        """The node stops: it takes no launcher any more."""
        self._closed = True
        self._stop_timer()
        self._close_input()

    def _read(self) -> None:
        assert self._input is not None
        try:
            data = os.read(self._input, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_input()
            self._remove()

    def _close_input(self) -> None:
        if self._input is not None:
            asyncio.get_running_loop().remove_reader(self._input)
            self._input = None

    def _add(self) -> None:
        self._count += 1
        self._stop_timer()

    def _remove(self) -> None:
        self._count -= 1
        if not self._count and self._ends and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._grace, self._all_gone)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _all_gone(self) -> None:
        log.info("the last launcher of an agent has gone: the node that was started for it ends")
        stopping = self._stopping()
        assert stopping is not None, "a node is assembled in less than the grace"
        stopping.begin()
