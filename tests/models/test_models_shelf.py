"""What of a store can be given away: what was verified, by its digest, and models by name once they were read."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gguf_samples import write_sample

from meshllm.models.library.store import Store
from meshllm.models.p2p.seed_index import StoreSeedIndex
from meshllm.models.p2p.seeder import SeedFile
from meshllm.wire.mesh import files as w


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No models of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))


@pytest.fixture
def small(tmp_path: Path) -> Store:
    """A store that cuts files into small chunks."""
    store = Store(tmp_path / "models", chunk_bytes=4096)
    store.folder.mkdir()
    store.prepare()
    return store


@asynccontextmanager
async def shelf_of(store: Store, busy: bool = False) -> AsyncIterator[StoreSeedIndex]:
    before = asyncio.all_tasks()
    shelf = StoreSeedIndex(store, lambda: busy)
    try:
        async with asyncio.timeout(30):
            yield shelf
    finally:
        await shelf.close()
    assert asyncio.all_tasks() <= before


def made(store: Store, name: str = "model.gguf") -> tuple[Path, str]:
    """A model file in the store that nobody has verified, and its sha256."""
    path = write_sample(store.folder / name, layers=4, tokens=20)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


async def until_ready(shelf: StoreSeedIndex, question: str, *, by_name: bool = False) -> object:
    """The answer, asked for again while it is prepared."""
    while True:
        answer = await (shelf.find(question) if by_name else shelf.lookup(question))
        if not isinstance(answer, w.FileRefusal) or answer.reason is not w.FileRefusalReason.PREPARING:
            return answer
        await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name().startswith("shelf/")])


async def test_a_verified_file_is_read_once_and_given(small: Store) -> None:
    path, sha256 = made(small)
    small.record(path, sha256)
    async with shelf_of(small) as shelf:
        first = await shelf.lookup(sha256)
        assert first == w.FileRefusal(w.FileRefusalReason.PREPARING, 0, 2)
        answer = await until_ready(shelf, sha256)
        assert isinstance(answer, SeedFile)
        content = path.read_bytes()
        digests = [hashlib.sha256(content[: at + 4096]).digest() for at in range(0, len(content), 4096)]
        assert answer.listing == w.ChunkListing(len(content), 4096, b"".join(digests))
        assert answer.path == path
        # Known from now on, for a later start too.
        assert isinstance(await StoreSeedIndex(small, lambda: False).lookup(sha256), SeedFile)


async def test_what_was_never_verified_cannot_be_had_by_its_digest(small: Store, tmp_path: Path) -> None:
    _, sha256 = made(small)
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(b"private")
    async with shelf_of(small) as shelf:
        for digest in (sha256, hashlib.sha256(b"private").hexdigest(), "00" * 32):
            assert await shelf.lookup(digest) == w.FileRefusal(w.FileRefusalReason.ABSENT)


async def test_what_has_changed_since_is_not_given(small: Store) -> None:
    path, sha256 = made(small)
    small.record(path, sha256)
    async with shelf_of(small) as shelf:
        assert isinstance(await until_ready(shelf, sha256), SeedFile)
        path.write_bytes(path.read_bytes() + b"more")
        assert await shelf.lookup(sha256) == w.FileRefusal(w.FileRefusalReason.ABSENT)


async def test_a_note_that_is_wrong_is_found_out(small: Store) -> None:
    path, _ = made(small)
    small.record(path, "ab" * 32)
    async with shelf_of(small) as shelf:
        assert await until_ready(shelf, "ab" * 32) == w.FileRefusal(w.FileRefusalReason.ABSENT)
        assert small.known_digest(path) is None


async def test_a_model_is_found_by_its_name_whatever_the_case(small: Store) -> None:
    path, sha256 = made(small, "Our-Model.gguf")
    async with shelf_of(small) as shelf:
        answer = await until_ready(shelf, "our-MODEL", by_name=True)
        assert isinstance(answer, w.FoundModels)
        (model,) = answer.models
        assert model.files == (w.OfferedFile("Our-Model.gguf", path.stat().st_size, sha256),)
        assert await shelf.find("../Our-Model.gguf") == w.FoundModels(())
        assert await shelf.find(str(path)) == w.FoundModels(())


async def test_reading_is_slow_while_there_is_other_work(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By counting what it would have waited."""
    path, sha256 = made(small)
    small.record(path, sha256)
    waited: list[float] = []
    monkeypatch.setattr("meshllm.models.p2p.seed_index.time.sleep", waited.append)
    async with shelf_of(small, busy=True) as shelf:
        assert isinstance(await until_ready(shelf, sha256), SeedFile)
    assert sum(waited) == pytest.approx(path.stat().st_size / 32e6)
