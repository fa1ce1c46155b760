"""Starts asyncio tasks, and eager tasks, which cost less. `test_laws.py` checks that no other module starts any.

Invariants: every task has a name and an owner; `Owner.close` cancels and awaits the owner's tasks; the exception of a
task is reported to `on_error`, to the log, or to the code that awaits the task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

# Tasks that take longer to end are named in the log: a daemon that does not stop then says why (seconds).
SLOW_END_SECONDS = 10.0


class Signal(Generic[T]):
    """What an eager task waits for: a value that comes once. It goes on inside `set`, before that returns."""

    __slots__ = ("_value", "is_set", "waiter")
    _value: T

    def __init__(self) -> None:
        self.is_set = False
        self.waiter: EagerTask | None = None

    def set(self, value: T) -> None:
        """The value has come. Only the first one counts."""
        if self.is_set:
            return
        self.is_set, self._value = True, value
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter.step()

    def __await__(self) -> Generator[Any, None, T]:
        if not self.is_set:
            yield self
        return self._value


class EagerTask:
    """A coroutine that starts at once, goes on at once when its `Signal` is set, and costs no turn of the event loop.

    It is no asyncio task: `asyncio.timeout` and all else that needs one belongs in a task (`Owner.start`) that it
    awaits. Futures resume it from the event loop. A chain of eager tasks that set each other's signals is a recursion.
    """

    __slots__ = ("_cancelled", "_coroutine", "_owner", "_send", "_waits_for", "name")

    def __init__(self, owner: Owner, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Made by `Owner.start_eagerly`, which makes the first step."""
        self.name = name
        self._owner = owner
        self._coroutine = coroutine
        self._send: Callable[[Any], Any] = coroutine.send
        # What it waits for; None while it runs, and once it has ended.
        self._waits_for: Signal[Any] | asyncio.Future[Any] | None = None
        self._cancelled = False

    def step(self, _: object = None) -> None:
        """Run to the next wait, or to the end."""
        self._waits_for = None
        self._run(self._send, None)

    def _run(self, resume: Callable[[Any], Any], what: BaseException | None) -> None:
        try:
            waits_for = resume(what)
        except (StopIteration, asyncio.CancelledError):
            self._owner.eager_ended(self, None)
        except BaseException as error:
            self._owner.eager_ended(self, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._waits_for = waits_for
            if type(waits_for) is Signal:
                waits_for.waiter = self
            else:  # the protocol of futures, as asyncio's own tasks keep it
                waits_for._asyncio_future_blocking = False
                waits_for.add_done_callback(self.step)
            if self._cancelled:  # while it ran
                self._cancelled = False
                self.cancel()

    def cancel(self) -> None:
        """Raise CancelledError in the coroutine: at once if it waits for a signal, in the event loop if for a future.

        A task that cancels itself gets it at its next wait.
        """
        waits_for = self._waits_for
        if isinstance(waits_for, Signal):
            waits_for.waiter = self._waits_for = None
            self._run(self._coroutine.throw, asyncio.CancelledError())
        elif waits_for is None or not waits_for.cancel():
            self._cancelled = True


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
        self._eager: set[EagerTask] = set()
        self._eager_ended: asyncio.Event | None = None
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

    def start_eagerly(self, coroutine: Coroutine[Any, Any, None], name: str) -> EagerTask:
        """Run `coroutine` up to its first wait, then as an eager task. Raises RuntimeError once the owner is closed."""
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"{self.name} is closed and cannot start {name}")
        task = EagerTask(self, coroutine, name)
        self._eager.add(task)
        task.step()
        return task

    def eager_ended(self, task: EagerTask, error: BaseException | None) -> None:
        """One of the eager tasks here has ended."""
        self._eager.discard(task)
        if error is not None:
            self._failed(f"{self.name}/{task.name}", error)
        if self._eager_ended is not None and not self._eager:
            self._eager_ended.set()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(task.get_name(), error)

    def _failed(self, name: str, error: BaseException) -> None:
        if self._on_error is not None:
            self._on_error(name, error)
        else:
            log.log(logging.DEBUG if self._awaited else logging.ERROR, "task %s failed", name, exc_info=error)

    async def close(self) -> None:
        """Cancel and await every task. Idempotent. A task that calls it is neither cancelled nor awaited.

        Eager tasks must not call it.
        """
        self._closed = True
        current = asyncio.current_task()
        mine = [task for task in self._tasks if task is not current]
        for eager in list(self._eager):
            eager.cancel()
        for task in mine:
            task.cancel()
        if mine:
            _, left = await asyncio.wait(mine, timeout=SLOW_END_SECONDS)
            if left:
                log.warning("waiting for tasks to end: %s", ", ".join(sorted(task.get_name() for task in left)))
                await asyncio.wait(left)
        if self._eager:
            self._eager_ended = self._eager_ended or asyncio.Event()
            await self._eager_ended.wait()

    def __repr__(self) -> str:
        names = [task.get_name() for task in self._tasks] + [f"{self.name}/{task.name}" for task in self._eager]
        return f"<Owner {self.name}: {', '.join(sorted(names)) or 'idle'}>"
