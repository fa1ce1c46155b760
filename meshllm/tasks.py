"""The only place that starts asyncio tasks.

Law: every task has a name and an owner (`Owner`); an owner that closes cancels and awaits what it owns; a task
that fails unexpectedly is reported to its owner's `on_error`, never dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Owner:
    """Owns tasks. `start` them, and `close` cancels and awaits all that still run."""

    def __init__(self, name: str, on_error: Callable[[str, BaseException], None] | None = None) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_error = on_error
        self._closed = False

    def start(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `coroutine` as a task called `owner/name`. Raises RuntimeError once the owner is closed."""
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"{self.name} is closed and cannot start {name}")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self.name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._on_error is not None:
            self._on_error(task.get_name(), error)
        else:
            log.error("task %s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel and await every task. Idempotent; safe to call from one of the tasks (which is then left alone)."""
        self._closed = True
        current = asyncio.current_task()
        mine = [task for task in self._tasks if task is not current]
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.gather(*mine, return_exceptions=True)

    def __repr__(self) -> str:
        return f"<Owner {self.name}: {', '.join(sorted(t.get_name() for t in self._tasks)) or 'idle'}>"
