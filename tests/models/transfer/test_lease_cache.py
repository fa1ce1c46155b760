"""Audit, row 4: what a lease brings is kept apart, by digest, within a limit, and is no model of this node."""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.errors import DownloadFailed, NotEnoughSpace
from meshllm.models.hub.manifest import ModelFile
from meshllm.models.library import scan
from meshllm.models.library.inventory import inventory
from meshllm.models.library.store import Store
from meshllm.models.transfer.lease_cache import LeaseCache
from meshllm.models.transfer.partial_file import PartialFile
from meshllm.models.transfer.progress import TransferProgress


class Peers:
    """Nodes that have these contents, by digest; `asked`: the digests that were asked for."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(content).hexdigest(): content for content in contents}
        self.asked: list[str] = []

    async def download_into(self, partial: PartialFile) -> None:
        self.asked.append(partial.path.name.partition(".")[0])
        content = self.contents.get(self.asked[-1])
        if content is None:
            raise DownloadFailed("No peer has it.")
        while piece := partial.claim("peer", 1):
            partial.write(piece, content[piece.position : piece.position + len(content)])

    def reject_claims(self, partial: PartialFile) -> bool:
        return False


def ignore(step: TransferProgress) -> None: ...


def leased(content: bytes, name: str = "Qwen3-8B-Q4_K_M.gguf") -> ModelFile:
    """A file as a lease lists it."""
    return ModelFile(name, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The owner's models: none, and none of other programs."""
    for variable in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    (tmp_path / "models").mkdir()
    return Store(tmp_path / "models")


@pytest.fixture
def cache(tmp_path: Path, library: Store) -> Callable[[int | None], LeaseCache]:
    """Makes caches of one folder, with a limit."""
    return lambda limit: LeaseCache(tmp_path / "models" / "home" / "lease-cache", library, limit)


Cache = Callable[[int | None], LeaseCache]


async def test_planted_file_is_named_by_its_digest_and_is_no_model(cache: Cache, library: Store) -> None:
    content = b"GGUF toy" * 100
    file = leased(content)
    (path,) = await cache(None).files([file], ignore, Peers(content))
    assert path.name == file.sha256
    assert path.read_bytes() == content
    # Even a home inside the folder of the models changes nothing.
    assert path.is_relative_to(library.folder)
    assert not list(library.folder.rglob("*.gguf"))
    assert scan.scan(library) == {}
    assert inventory(library) == []
    assert not library.is_verified(file)


@pytest.mark.parametrize("name", ["../../evil.gguf", "/etc/passwd", "", ".ssh/authorized_keys", "a\0b"])
async def test_name_of_the_wire_is_never_a_name_on_this_disk(
    cache: Cache, library: Store, tmp_path: Path, name: str
) -> None:
    (path,) = await cache(None).files([leased(b"bytes", name)], ignore, Peers(b"bytes"))
    assert path.name == hashlib.sha256(b"bytes").hexdigest()
    names = names_below(tmp_path)
    assert all(set(each) <= set(string.hexdigits + string.ascii_lowercase + "-.") for each in names)


@pytest.mark.parametrize("file", [ModelFile("a.gguf", 5, "../" * 21 + "a"), ModelFile("a.gguf", 0, "ab" * 32)])
async def test_invalid_digest_and_size_are_refused(cache: Cache, file: ModelFile) -> None:
    with pytest.raises(DownloadFailed):
        await cache(None).files([file], ignore, Peers())


async def test_second_lease_of_the_same_file_fetches_nothing(cache: Cache) -> None:
    peers = Peers(b"a" * 1000)
    first = await cache(None).files([leased(b"a" * 1000)], ignore, peers)
    assert await cache(None).files([leased(b"a" * 1000)], ignore, peers) == first
    assert len(peers.asked) == 1


async def test_owners_file_with_the_digest_is_used_in_place_whatever_its_name(cache: Cache, library: Store) -> None:
    own = library.folder / "mine.gguf"
    own.write_bytes(b"weights" * 50)
    peers = Peers(b"weights" * 50)
    assert await cache(0).files([leased(b"weights" * 50)], ignore, peers) == (own,)
    assert peers.asked == []


async def test_owners_file_of_that_name_with_other_bytes_is_left_alone(cache: Cache, library: Store) -> None:
    own = library.folder / "Qwen3-8B-Q4_K_M.gguf"
    own.write_bytes(b"the owner's")
    (path,) = await cache(None).files([leased(b"the thief's")], ignore, Peers(b"the thief's"))
    assert own.read_bytes() == b"the owner's"
    assert path != own


async def test_changed_file_in_the_cache_is_not_used(cache: Cache) -> None:
    peers = Peers(b"a" * 1000)
    (path,) = await cache(None).files([leased(b"a" * 1000)], ignore, peers)
    path.write_bytes(b"b" * 1000)
    os.utime(path, ns=(1, 1))
    (path,) = await cache(None).files([leased(b"a" * 1000)], ignore, peers)
    assert path.read_bytes() == b"a" * 1000


def names_below(folder: Path) -> set[str]:
    """The names of all files."""
    return {found.name for found in folder.rglob("*") if found.is_file()}


def held(path: Path) -> int:
    """Bytes of contents in the cache's folder, partial ones too."""
    partial = path / ".mesh-llm" / "partial"
    return sum(
        f.stat().st_size for folder in (path, partial) if folder.exists() for f in folder.iterdir() if f.is_file()
    )


async def test_disk_is_bounded_and_the_longest_unused_goes_first(cache: Cache, tmp_path: Path) -> None:
    contents = [bytes([number]) * 400 for number in range(6)]
    peers = Peers(*contents)
    folder = tmp_path / "models" / "home" / "lease-cache"
    for number, content in enumerate(contents):
        (path,) = await cache(1000).files([leased(content)], ignore, peers)
        os.utime(path, ns=(number + 1, path.stat().st_mtime_ns))
        assert held(folder) <= 1000
    there = {found.name for found in folder.iterdir() if found.is_file()}
    assert there == {leased(content).sha256 for content in contents[-2:]}


async def test_lease_larger_than_the_limit_is_not_fetched(cache: Cache) -> None:
    peers = Peers(b"a" * 600, b"b" * 600)
    with pytest.raises(NotEnoughSpace, match="keeps"):
        await cache(1000).files([leased(b"a" * 600), leased(b"b" * 600)], ignore, peers)
    with pytest.raises(NotEnoughSpace):
        await cache(0).files([leased(b"a" * 600)], ignore, peers)
    assert peers.asked == []


async def test_partial_downloads_count_and_go_too(cache: Cache, tmp_path: Path) -> None:
    lost = leased(b"x" * 900)
    folder = tmp_path / "models" / "home" / "lease-cache"
    store = Store(folder)
    store.prepare()
    store.partial_path(lost).write_bytes(b"x" * 500)
    peers = Peers(b"a" * 800)
    await cache(1000).files([leased(b"a" * 800)], ignore, peers)
    assert held(folder) == 800
    cache(0).make_room()
    assert held(folder) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 900)), max_size=12))
def test_make_room_never_removes_what_it_keeps_and_holds_the_limit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = LeaseCache(folder, Store(folder / "models"), 1000)
    for number, size in steps:
        content = bytes([number]) * size
        name = hashlib.sha256(content).hexdigest()
        kept = next((found.name for found in folder.iterdir() if found.is_file()), name)
        try:
            cache.make_room([ModelFile(name, size, name)], {name, kept})
        except NotEnoughSpace:
            assert (folder / kept).exists()
            continue
        assert kept == name or (folder / kept).exists()
        (folder / name).write_bytes(content)
        assert held(folder) <= 1000 or (folder / name).exists()
