"""Files and models of a store that can be uploaded."""

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
from meshllm.models.p2p.share_policy import Share, SharePolicy
from meshllm.wire.mesh import files as w


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the models of the user who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))


@pytest.fixture
def small(tmp_path: Path) -> Store:
    """A store with small chunks."""
    store = Store(tmp_path / "models", chunk_bytes=4096)
    store.folder.mkdir()
    store.prepare()
    return store


@asynccontextmanager
async def index_of(store: Store, busy: bool = False) -> AsyncIterator[StoreSeedIndex]:
    before = asyncio.all_tasks()
    index = StoreSeedIndex(store, lambda: busy, SharePolicy(Share.ALL, store))
    try:
        async with asyncio.timeout(30):
            yield index
    finally:
        await index.close()
    assert asyncio.all_tasks() <= before


def made(store: Store, name: str = "model.gguf") -> tuple[Path, str]:
    """An unverified model file in the store, and its sha256."""
    path = write_sample(store.folder / name, layers=4, tokens=20)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


async def until_ready(index: StoreSeedIndex, question: str, *, by_name: bool = False) -> object:
    """The answer, repeated while the file is hashed."""
    while True:
        answer = await (index.find(question) if by_name else index.lookup(question))
        if not isinstance(answer, w.FileRefusal) or answer.reason is not w.FileRefusalReason.PREPARING:
            return answer
        await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name().startswith("index/")])


async def test_lookup_hashes_a_verified_file_once(small: Store) -> None:
    path, sha256 = made(small)
    small.record(path, sha256)
    async with index_of(small) as index:
        first = await index.lookup(sha256)
        assert first == w.FileRefusal(w.FileRefusalReason.PREPARING, 0, 2)
        answer = await until_ready(index, sha256)
        assert isinstance(answer, SeedFile)
        content = path.read_bytes()
        digests = [hashlib.sha256(content[: at + 4096]).digest() for at in range(0, len(content), 4096)]
        assert answer.listing == w.ChunkListing(len(content), 4096, b"".join(digests))
        assert answer.path == path
        # Known from now on, for a later start too.
        assert isinstance(
            await StoreSeedIndex(small, lambda: False, SharePolicy(Share.ALL, small)).lookup(sha256), SeedFile
        )


async def test_lookup_refuses_an_unverified_file(small: Store, tmp_path: Path) -> None:
    _, sha256 = made(small)
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(b"private")
    async with index_of(small) as index:
        for digest in (sha256, hashlib.sha256(b"private").hexdigest(), "00" * 32):
            assert await index.lookup(digest) == w.FileRefusal(w.FileRefusalReason.ABSENT)


async def test_lookup_refuses_a_changed_file(small: Store) -> None:
    path, sha256 = made(small)
    small.record(path, sha256)
    async with index_of(small) as index:
        assert isinstance(await until_ready(index, sha256), SeedFile)
        path.write_bytes(path.read_bytes() + b"more")
        assert await index.lookup(sha256) == w.FileRefusal(w.FileRefusalReason.ABSENT)


async def test_lookup_removes_a_wrong_record(small: Store) -> None:
    path, _ = made(small)
    small.record(path, "ab" * 32)
    async with index_of(small) as index:
        assert await until_ready(index, "ab" * 32) == w.FileRefusal(w.FileRefusalReason.ABSENT)
        assert small.known_digest(path) is None


async def test_find_ignores_the_case_of_names(small: Store) -> None:
    path, sha256 = made(small, "Our-Model.gguf")
    async with index_of(small) as index:
        answer = await until_ready(index, "our-MODEL", by_name=True)
        assert isinstance(answer, w.FoundModels)
        (model,) = answer.models
        assert model.files == (w.OfferedFile("Our-Model.gguf", path.stat().st_size, sha256),)
        assert await index.find("../Our-Model.gguf") == w.FoundModels(())
        assert await index.find(str(path)) == w.FoundModels(())


async def test_hashing_is_slow_while_the_node_is_busy(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the seconds of all sleeps."""
    path, sha256 = made(small)
    small.record(path, sha256)
    waited: list[float] = []
    monkeypatch.setattr("meshllm.models.p2p.seed_index.time.sleep", waited.append)
    async with index_of(small, busy=True) as index:
        assert isinstance(await until_ready(index, sha256), SeedFile)
    assert sum(waited) == pytest.approx(path.stat().st_size / 32e6)
