"""Runs blocking work (hashing, unpacking, a synchronous HTTP client) in a daemon thread that can be stopped.

The threads are daemon threads, so that a system call that never returns (a name server) cannot block the exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

# Shortest time between two reports: a progress bar moves smoothly at 20 a second.
REPORT_SECONDS: Final = 0.05
T = TypeVar("T")


class ThreadStopped(Exception):
    """Raised in the thread that was asked to stop; `in_thread` never passes it on."""


class StopSignal:
    """Asks a thread to stop. Effects made inside `with stop:` do not happen after `set()` has returned."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = False

    def set(self) -> None:
        """Ask the thread to stop. Waits until it has left `with stop:`."""
        with self._lock:
            self._wanted = True

    def check(self) -> None:
        """In the thread: raises ThreadStopped once it was asked to stop."""
        if self._wanted:
            raise ThreadStopped

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._wanted:
            self._lock.release()
            raise ThreadStopped

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class ProgressRelay:
    """Passes a thread's progress to the event loop: the newest number, at most once per `pause` seconds."""

    def __init__(self, report: Callable[[int], None], *, pause: float = REPORT_SECONDS) -> None:
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._pause = pause
        self._newest = 0
        self._pending = False
        self._next = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def __call__(self, done: int) -> None:
        """Set the newest number; called from the thread."""
        self._newest = done
        if self._pending:
            return
        self._pending = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._schedule)

    def flush(self) -> None:
        """Report the newest number now, if it was not reported."""
        if self._timer is not None:
            self._timer.cancel()
        self._tell()

    def end(self) -> None:
        """Report the newest number and ignore later ones."""
        self.flush()
        self._ended = True

    def _schedule(self) -> None:
        wait = self._next - self._loop.time()
        if wait > 0 and not self._ended:
            self._timer = self._loop.call_later(wait, self._tell)
        else:
            self._tell()

    def _tell(self) -> None:
        if self._ended or not self._pending:
            return
        self._next = self._loop.time() + self._pause
        self._pending = False  # before reading: a number set from now on schedules another report
        self._report(self._newest)


class _Call(Generic[T]):
    def __init__(self, work: Callable[[StopSignal], T]) -> None:
        self.stop = StopSignal()
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[T] = self.loop.create_future()
        self._work = work

    def run(self) -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = self._work(self.stop)
        except BaseException as raised:  # noqa: BLE001 - passed to the waiting task
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(result)  # type: ignore[arg-type]
        elif isinstance(error, ThreadStopped | StopIteration):
            self.ended.cancel()
        else:
            self.ended.set_exception(error)


async def in_thread(work: Callable[[StopSignal], T], name: str, *, leave: bool = False) -> T:
    """Run `work` in its own thread called `name`; returns its result or raises its error.

    When cancelled, asks the thread to stop and waits for it. With `leave`, for work that may hang in a system call, it
    does not wait; the thread then has no further effects inside `with stop:`.
    """
    call = _Call(work)
    threading.Thread(target=call.run, name=name, daemon=True).start()
    try:
        return await asyncio.shield(call.ended)
    except asyncio.CancelledError:
        call.stop.set()
        if leave:
            call.ended.cancel()
        while not call.ended.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([call.ended])
        if not call.ended.cancelled():
            call.ended.exception()  # retrieved, so that asyncio does not log it
        raise
