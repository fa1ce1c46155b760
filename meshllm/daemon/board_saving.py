"""Saves the blackboard off the event loop, in one thread at a time.

Invariants: a post is reported as saved only after its commit. A change that the disk does not take is kept, merged with
later ones, and tried again; what waits is never more than the board holds. Erased texts leave the files within seconds.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Final

from meshllm.board.store import EntryStore, StoreChange, StoreFailed
from meshllm.core import events as e
from meshllm.core.board.entries import SignedEntry
from meshllm.tasks import Owner
from meshllm.util.threads import StopSignal, in_thread

log = logging.getLogger(__name__)

# A retracted text leaves the files after so long: several at once cost as much as one.
ERASED_SECONDS: Final = 2.0
# On a slow disk it takes longer: no more than one part of the time in so many is spent on it.
CLEANING_SHARE: Final = 10
MAX_ERASED_SECONDS: Final = 8.0
# What expired leaves them with the next erased text, or after so long.
REMOVED_SECONDS: Final = 600.0
# A disk that did not take a change is tried again after so long, or with the next change.
RETRY_SECONDS: Final = 30.0


class BoardSaver:
    """A queue in front of a store. Used on the event loop."""

    def __init__(
        self, store: EntryStore, post: Callable[[e.Event], None], *, erased_seconds: float = ERASED_SECONDS
    ) -> None:
        self._store = store
        self._post = post
        self._erased_seconds = erased_seconds
        self._owner = Owner("board saver")
        self._posts: list[tuple[int, SignedEntry]] = []
        self._change = StoreChange()
        self._clean_at: float | None = None
        self._clean_took = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._has_news = False
        self._failing = False
        self._closed = False

    def save_post(self, number: int, entry: SignedEntry) -> None:
        """Save an own entry; `PostSaved` or `PostFailed` is posted."""
        self._posts.append((number, entry))
        self._start()

    def save(self, change: StoreChange) -> None:
        """Save what changed, some time."""
        if not change:
            return
        self._change.merge(change)
        self._start()

    async def close(self) -> None:
        """Save what waits, and close the store. Posts that wait are not saved."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._owner.close()
        change = self._change
        await in_thread(lambda stop: self._finish(change), "board saver")

    def _start(self) -> None:
        self._has_news = True
        if not self._busy and not self._closed:
            self._busy = True
            self._owner.start(self._run(), "save")

    async def _run(self) -> None:
        try:
            while self._has_news:
                self._has_news = False
                await self._step()
                if not self._failing and self._clean_is_due():
                    self._has_news = True
        finally:
            self._busy = False
        self._schedule()

    async def _step(self) -> None:
        """Save what waits now. What goes makes room for posts."""
        posts, change, clean = self._posts, self._change, self._clean_is_due()
        self._posts, self._change = [], StoreChange()
        outcomes: list[str | None] = []
        error: str | None = "The blackboard could not be saved."
        cleaned = False
        begin = asyncio.get_running_loop().time()
        try:

            def work(stop: StopSignal) -> tuple[str | None, bool]:
                failed = _failure(lambda: self._store.apply(change)) if change else None
                for _, entry in posts:
                    outcomes.append(_failure(functools.partial(self._store.save_post, entry)))
                if failed is not None or not clean:
                    return failed, False
                return _failure(self._store.clean), True

            error, cleaned = await in_thread(work, "board saver")
        finally:
            # The thread has ended, whether it did all or not.
            if error is not None and not cleaned:
                change.merge(self._change)
                self._change = change
            for (number, _), failed in zip(posts, [*outcomes, *[error] * len(posts)], strict=False):
                self._post(e.PostSaved(number) if failed is None else e.PostFailed(number, failed))
        self._note(error)
        if cleaned and error is None:
            self._clean_at = None
            self._clean_took = asyncio.get_running_loop().time() - begin
        self._plan_cleaning(bool(change.erased))

    def _clean_is_due(self) -> bool:
        return self._clean_at is not None and asyncio.get_running_loop().time() >= self._clean_at

    def _plan_cleaning(self, erased: bool) -> None:
        if not self._store.unclean:
            self._clean_at = None
            return
        seldom = min(MAX_ERASED_SECONDS, CLEANING_SHARE * self._clean_took)
        wait = max(self._erased_seconds, seldom) if erased else REMOVED_SECONDS
        at = asyncio.get_running_loop().time() + wait
        self._clean_at = at if self._clean_at is None else min(self._clean_at, at)

    def _schedule(self) -> None:
        """Wake for the next cleaning, or to try again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        if self._failing:
            self._timer = loop.call_later(RETRY_SECONDS, self._start)
        elif self._clean_at is not None:
            self._timer = loop.call_at(self._clean_at, self._start)

    def _note(self, error: str | None) -> None:
        """Log the first failure, and its end."""
        if error is not None and not self._failing:
            log.warning("the blackboard is not saved for now: %s It is tried again.", error)
        elif error is None and self._failing:
            log.info("the blackboard is saved again")
        self._failing = error is not None

    def _finish(self, change: StoreChange) -> None:
        if change and (error := _failure(lambda: self._store.apply(change))) is not None:
            log.warning("the last changes of the blackboard were not saved: %s", error)
        self._store.close()


def _failure(work: Callable[[], None]) -> str | None:
    """Why `work` failed, None if it did not. Nothing that it raises may end the thread: the core waits for answers."""
    try:
        work()
    except StoreFailed as error:
        return str(error)
    except Exception as error:
        log.exception("saving the blackboard failed")
        return f"The blackboard could not be saved: {error!r}."
    return None
