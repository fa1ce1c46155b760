"""The queue in front of the store: failures, retries, and when the files are cleaned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from meshllm.board.store import SqliteStore, StoreChange, StoreFailed
from meshllm.core import events as e
from meshllm.core.board.entries import SignedEntry
from meshllm.daemon import board_saving
from meshllm.daemon.board_saving import BoardSaver
from meshllm.wire.mesh.board import decode_header
from tests.board.board_samples import START, SampleNode, node
from tests.daemon.small_board import until


class WatchedStore(SqliteStore):
    """A store on a disk that can be broken."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, decode_header)
        self.broken = False
        self.applied = self.cleaned = 0

    def _check(self) -> None:
        if self.broken:
            raise StoreFailed("The cable is out.")

    def save_post(self, entry: SignedEntry) -> None:
        self._check()
        super().save_post(entry)

    def apply(self, change: StoreChange) -> None:
        self._check()
        super().apply(change)
        self.applied += 1

    def clean(self) -> None:
        self._check()
        if self.unclean:
            self.cleaned += 1
        super().clean()


class Saving:
    """A saver with its store and the events that it posted."""

    def __init__(self, folder: Path) -> None:
        self.store = WatchedStore(folder / "board.db")
        self.store.open(node(1), START / 1000)
        self.events: list[e.Event] = []
        self.saver = BoardSaver(self.store, self.events.append, erased_seconds=0.05)
        self.author = SampleNode(2)
        self.folder = folder

    def entry(self, text: str) -> SignedEntry:
        return self.author.write(START, text)

    def add(self, *entries: SignedEntry) -> None:
        self.saver.save(StoreChange({entry.id: (entry, 1) for entry in entries}))

    def has(self, text: str) -> bool:
        return any(text.encode() in path.read_bytes() for path in self.folder.iterdir())

    async def saved(self) -> list[str | None]:
        """What a restart finds."""
        await self.saver.close()
        found = SqliteStore(self.folder / "board.db", decode_header)
        texts = [entry.body for entry in found.open(node(1), START / 1000).entries]
        found.close()
        return texts


@pytest_asyncio.fixture
async def saving(tmp_path: Path) -> AsyncIterator[Saving]:
    made = Saving(tmp_path)
    yield made
    await made.saver.close()


async def test_post_is_reported_once_it_is_on_the_disk(saving: Saving) -> None:
    own = SampleNode(1).write(START, "mine")
    saving.saver.save_post(7, own)
    assert saving.events == []
    await until(lambda: saving.events)
    assert saving.events == [e.PostSaved(7)]
    assert await saving.saved() == ["mine"]


async def test_failed_change_is_kept_and_saved_with_the_next(saving: Saving, caplog: pytest.LogCaptureFixture) -> None:
    saving.store.broken = True
    gone = saving.entry("gone")
    saving.add(saving.entry("one"), gone)
    saving.saver.save_post(1, SampleNode(1).write(START, "refused"))
    await until(lambda: saving.events)
    assert saving.events == [e.PostFailed(1, "The cable is out.")]
    saving.add(saving.entry("two"))
    saving.saver.save(StoreChange(removed={gone.id}))
    await asyncio.sleep(0.05)
    assert caplog.text.count("The cable is out.") == 1
    saving.store.broken = False
    saving.add(saving.entry("three"))
    await until(lambda: saving.store.applied)
    assert await saving.saved() == ["one", "two", "three"]


async def test_failed_change_is_tried_again_by_itself(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_saving, "RETRY_SECONDS", 0.05)
    saving.store.broken = True
    saving.add(saving.entry("one"))
    await asyncio.sleep(0.02)
    saving.store.broken = False
    await until(lambda: saving.store.applied)
    assert await saving.saved() == ["one"]


async def test_change_that_the_disk_takes_at_last_is_saved_at_the_end(saving: Saving) -> None:
    saving.store.broken = True
    saving.add(saving.entry("one"))
    await asyncio.sleep(0.05)
    saving.store.broken = False
    assert await saving.saved() == ["one"]


async def test_texts_erased_together_are_cleaned_away_together(saving: Saving) -> None:
    entries = [saving.entry(f"erased {number}") for number in range(20)]
    saving.add(*entries)
    await until(lambda: saving.store.applied)
    for entry in entries:
        saving.saver.save(StoreChange(erased={entry.id}))
        await asyncio.sleep(0)
    assert saving.has("erased 7")
    await until(lambda: not saving.has("erased"))
    assert saving.store.cleaned <= 3
    assert await saving.saved() == [None] * 20


async def test_cleaning_that_failed_is_done_later(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_saving, "RETRY_SECONDS", 0.05)
    entry = saving.entry("erased")
    saving.add(entry)
    await until(lambda: saving.store.applied)
    saving.saver.save(StoreChange(erased={entry.id}))
    await until(lambda: saving.store.applied == 2)
    saving.store.broken = True
    await asyncio.sleep(0.1)
    assert saving.has("erased")
    saving.store.broken = False
    await until(lambda: not saving.has("erased"))


async def test_what_expired_is_cleaned_away_seldom(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_saving, "REMOVED_SECONDS", 0.3)
    entries = [saving.entry(f"expired {number}") for number in range(5)]
    saving.add(*entries)
    await until(lambda: saving.store.applied)
    for entry in entries:
        saving.saver.save(StoreChange(removed={entry.id}))
        await asyncio.sleep(0.01)
    assert saving.store.cleaned == 0
    await until(lambda: not saving.has("expired"))
    assert saving.store.cleaned == 1


async def test_nothing_is_saved_after_the_end(saving: Saving) -> None:
    await saving.saver.close()
    saving.add(saving.entry("late"))
    saving.saver.save_post(1, saving.entry("late"))
    await asyncio.sleep(0.02)
    assert saving.events == []
    await saving.saver.close()
