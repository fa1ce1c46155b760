"""The search of the blackboard: its index is made at the first search and dropped when it is not used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from meshllm.board.index import BoardIndex, mask
from meshllm.board.search import SearchDocument, SearchIndex, SearchTerms, make_index
from meshllm.core.board.entries import EntryId
from meshllm.daemon.board_shield import shielded
from meshllm.tasks import Owner
from meshllm.util.threads import in_thread

# An index that was not used for so long is dropped: it takes several times the memory of the texts.
UNUSED_SECONDS: Final = 300.0


class LazySearch:
    """Searches the texts of an index of messages, in a thread. Used on the event loop."""

    def __init__(self, messages: BoardIndex, *, unused_seconds: float = UNUSED_SECONDS) -> None:
        self._messages = messages
        self._unused_seconds = unused_seconds
        self._index: SearchIndex | None = None
        self._changed: set[EntryId] = set()
        self._one_at_a_time = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._owner = Owner("board search", awaited=True)

    @property
    def is_made(self) -> bool:
        """Whether there is an index now."""
        return self._index is not None

    def changed(self, ids: Iterable[EntryId]) -> None:
        """These messages came, went or lost their text. What an unfinished index misses is added later."""
        if self._index is not None or self._one_at_a_time.locked():
            self._changed.update(ids)

    async def find(self, wanted: SearchTerms) -> list[EntryId]:
        """The messages that match, best first. A caller that goes away does not stop it: the index may be half made."""
        return await shielded(self._owner.start(self._find(wanted), "search"))

    async def _find(self, wanted: SearchTerms) -> list[EntryId]:
        async with self._one_at_a_time:
            if self._timer is not None:
                self._timer.cancel()
            index = self._index
            changed, self._changed = self._changed, set()
            documents = {item: self._messages.document(item) for item in (changed if index else self._messages.ids())}

            def work(stop: object) -> tuple[SearchIndex, list[EntryId]]:
                texts = {item: _masked(found) for item, found in documents.items()}
                made = index
                if made is None:
                    made = make_index(text for text in texts.values() if text is not None)
                else:
                    for item, text in texts.items():
                        made.remove(item) if text is None else made.add(text)
                return made, made.find(wanted)

            try:
                self._index, found = await in_thread(work, "board search")
            except BaseException:
                # What was added to it is not known: the next search makes it again.
                self._index = None
                raise
            self._timer = asyncio.get_running_loop().call_later(self._unused_seconds, self._drop)
            return found

    async def close(self) -> None:
        """Drop the index."""
        await self._owner.close()
        if self._timer is not None:
            self._timer.cancel()
        self._drop()

    def _drop(self) -> None:
        if not self._one_at_a_time.locked():
            if self._index is not None:
                self._index.close()
            self._index = None
            self._changed = set()


def _masked(document: tuple[SearchDocument, bool] | None) -> SearchDocument | None:
    if document is None:
        return None
    return mask(document[0]) if document[1] else document[0]
