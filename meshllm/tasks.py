"""Starts asyncio tasks. `test_laws.py` checks that no other module does.

Invariants: every task has a name and an owner; `Owner.close` cancels and awaits the owner's tasks; the exception of a
task is reported to `on_error`, to the log, or to the code that awaits the task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

# Tasks that take longer to end are named in the log: a daemon that does not stop then says why (seconds).
SLOW_END_SECONDS = 10.0


class Owner:
    """Owns tasks: `start` starts one, `close` cancels and awaits all that still run.

    `on_error(task name, exception)` is called for each task that fails; by default the failure is logged. With
    `awaited`, the code that starts a task also awaits it and gets its exception: the log then has it at DEBUG only.
    """

    def __init__(
        self, name: str, on_error: Callable[[str, BaseException], None] | None = None, *, awaited: bool = False
    ) -> None:
        self.name = name
        self._awaited = awaited
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
            log.log(
                logging.DEBUG if self._awaited else logging.ERROR, "task %s failed", task.get_name(), exc_info=error
            )

    async def close(self) -> None:
        """Cancel and await every task. Idempotent. A task that calls it is neither cancelled nor awaited."""
        self._closed = True
        current = asyncio.current_task()
        mine = [task for task in self._tasks if task is not current]
        for task in mine:
            task.cancel()
        if mine:
            _, left = await asyncio.wait(mine, timeout=SLOW_END_SECONDS)
            if left:
                log.warning("waiting for tasks to end: %s", ", ".join(sorted(task.get_name() for task in left)))
                await asyncio.wait(left)

    def __repr__(self) -> str:
        return f"<Owner {self.name}: {', '.join(sorted(t.get_name() for t in self._tasks)) or 'idle'}>"
