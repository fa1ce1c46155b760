"""Blocking work, such as hashing, unpacking or a synchronous HTTP client, in a thread that can be stopped.

Law: whoever is cancelled stops the thread's effects before the cancellation goes on. The threads are daemonic, so that
a name server which never answers cannot keep the program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

# As often as a bar moves smoothly: what is told more often costs, and nobody sees it.
REPORT_SECONDS: Final = 0.05
T = TypeVar("T")


class ThreadStopped(Exception):
    """The thread was asked to stop; it never reaches a caller."""


class StopSignal:
    """How a thread hears that it should stop. Effects happen inside `with stop:`, and none after `set()` returned."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = False

    def set(self) -> None:
        with self._lock:
            self._wanted = True

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._wanted:
            self._lock.release()
            raise ThreadStopped

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class ProgressRelay:
    """Tells the event loop how far a thread has come: always the newest number, and only so often a second."""

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
        """From the thread."""
        self._newest = done
        if self._pending:
            return
        self._pending = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._schedule)

    def flush(self) -> None:
        """Tell the newest number now, if it was not told yet."""
        if self._timer is not None:
            self._timer.cancel()
        self._tell()

    def end(self) -> None:
        """The same, and nothing more after that."""
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
        self._pending = False  # before reading: a number that comes now is told by another call
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
        except BaseException as raised:  # noqa: BLE001 - handed to the waiter, whatever it is
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
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
    """What `work` returns or raises, run in a thread of its own called `name`.

    When cancelled, the thread is told to stop and is waited for; with `leave`, for work that may hang in the system,
    it is left to end by itself (it can have no more effects inside `with stop:`).
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
            call.ended.exception()  # seen, so that it is not reported as lost
        raise
