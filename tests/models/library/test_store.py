"""Paths and records of the model store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.errors import DownloadFailed, InvalidModelFile
from meshllm.models.gguf.header import read_header
from meshllm.models.hub import manifest_cache as kept_module
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest, ModelFile, PackageSource
from meshllm.models.hub.manifest_cache import ManifestCache, is_file_name, is_repository_path
from meshllm.models.library.store import Store
from meshllm.models.transfer.prefix_hash import digests
from meshllm.util.threads import StopSignal

ONE, TWO = "1a" * 32, "2b" * 32
HUB = HubSource("org/repo", "c" * 40, "a/m.gguf")
WHEEL = PackageSource("some-package==1.0", 5, TWO, "some_package/m.gguf")
FILE = ModelFile("m.gguf", 5, ONE, (HUB, WHEEL))
MANIFEST = Manifest("M", (FILE,), replace(FILE, name="mmproj.gguf"), "t.jinja", 7, "somewhere")


def verified(path: Path, sha256: str, store: Store) -> Path:
    """A file with a recorded digest."""
    store.prepare()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"12345")
    store.record(path, sha256)
    return path


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """A folder that cannot be listed, even by root."""
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- places


def test_target_paths_of_a_file(store: Store) -> None:
    folder = store.folder
    assert store.target_paths(FILE) == [
        folder / "m.gguf",
        folder / "org/repo/m.gguf",
        folder / "org/repo" / ONE[:12] / "m.gguf",
    ]
    assert store.target_paths(replace(FILE, sources=())) == [folder / "m.gguf", folder / ONE[:12] / "m.gguf"]


def test_adopt_uses_the_first_free_path(store: Store) -> None:
    store.prepare()
    places = store.target_paths(FILE)
    for number, place in enumerate(places):
        partial = store.partial_path(FILE)
        partial.write_bytes(b"%d" % number)
        assert store.adopt(partial, FILE, places) == place
        assert store.known_digest(place) == ONE
    partial.write_bytes(b"x")
    with pytest.raises(DownloadFailed, match="Another file is at"):
        store.adopt(partial, FILE, places)
    assert [place.read_bytes() for place in places] == [b"0", b"1", b"2"]
    assert partial.read_bytes() == b"x"


def test_adopt_skips_a_dangling_link(store: Store) -> None:
    store.prepare()
    places = store.target_paths(FILE)
    places[0].symlink_to(store.folder / "nowhere")
    store.partial_path(FILE).write_bytes(b"x")
    assert store.adopt(store.partial_path(FILE), FILE, places) == places[1]
    assert places[0].is_symlink()


# -- what is known


def test_path_finds_a_verified_file_anywhere(store: Store, tmp_path: Path) -> None:
    outside = verified(tmp_path / "elsewhere" / "other-name", ONE, store)
    assert store.is_verified(FILE)
    assert store.path(FILE) == outside
    inside = verified(store.folder / "org/repo/m.gguf", ONE, store)
    assert store.path(FILE) == inside  # the store's own comes first
    assert dict(store.verified_files()) == {ONE: inside}
    inside.unlink()
    assert store.path(FILE) == outside
    store.forget(outside)
    assert not store.is_verified(FILE)
    assert store.path(FILE) == store.folder / "m.gguf"


def test_records_of_another_process_are_seen(store: Store) -> None:
    verified(store.folder / "m.gguf", ONE, store)
    other = Store(store.folder)
    assert other.is_verified(FILE)
    store.forget(store.folder / "m.gguf")
    assert not other.is_verified(FILE)


def test_find_together_requires_one_folder(store: Store, tmp_path: Path) -> None:
    files = [replace(FILE, name="m-00001-of-00002.gguf"), replace(FILE, name="m-00002-of-00002.gguf", sha256=TWO)]
    first = verified(store.folder / files[0].name, ONE, store)
    assert store.find_together(files) is None
    verified(tmp_path / files[1].name, TWO, store)
    assert store.find_together(files) is None
    second = verified(store.folder / files[1].name, TWO, store)
    assert store.find_together(files) == (first, second)


def test_moved_store_keeps_its_records(store: Store) -> None:
    verified(store.folder / "org/repo/m.gguf", ONE, store)
    moved = store.folder.rename(store.folder.with_name("moved"))
    assert Store(moved).path(FILE) == moved / "org/repo/m.gguf"


def test_check_space_counts_only_missing_bytes(store: Store) -> None:
    store.prepare()
    file = replace(FILE, size=100)
    assert store.resumable_bytes(file) == 0
    with store.partial_path(file).open("wb") as partial:
        partial.truncate(70)
    assert store.resumable_bytes(file) == 70
    partial = store.partial_file(file)
    partial.discard_chunk(0)
    partial.close()
    assert store.resumable_bytes(file) == 0


def test_chunk_digests_are_stored_and_checked(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(25))
    found = digests(StopSignal(), tmp_path / "f", 10, lambda done: None)
    assert len(found.chunks) == 3 * 32
    assert found.chunks == b"".join(hashlib.sha256(bytes(count)).digest() for count in (10, 20, 25))
    assert found.sha256 == found.chunks[64:].hex()
    store.prepare()
    with pytest.raises(ValueError, match="no digests"):
        store.record_chunks("../x", found.chunks)
    with pytest.raises(ValueError, match="no digests"):
        store.record_chunks(ONE, b"x")


# -- kept manifests


@pytest.fixture
def kept(tmp_path: Path) -> ManifestCache:
    (tmp_path / "kept").mkdir()
    return ManifestCache(tmp_path / "kept")


QUESTION = HubReference("M", "org/repo", quantization="Q4_K_M")


def test_manifest_cache_returns_what_was_stored(kept: ManifestCache, tmp_path: Path) -> None:
    kept.put(MANIFEST, QUESTION)
    assert ManifestCache(tmp_path / "kept").manifests() == [MANIFEST]
    assert kept.get(QUESTION) == MANIFEST
    assert kept.get(replace(QUESTION, quantization="Q8_0")) is None
    assert names(tmp_path / "kept") == ["M.json"]


def test_manifest_cache_keeps_models_of_equal_names(kept: ManifestCache) -> None:
    other = replace(QUESTION, repository="other/repo")
    kept.put(MANIFEST, QUESTION)
    kept.put(replace(MANIFEST, origin="other"), other)
    kept.put(replace(MANIFEST, origin="again"), QUESTION)
    assert {manifest.origin for manifest in kept.manifests()} == {"again", "other"}
    found = kept.get(other)
    assert found is not None
    assert found.origin == "other"
    kept.forget(found)
    assert kept.get(other) is None


@pytest.mark.parametrize("name", ["../../x", "a/b:c", ".hidden", "x" * 200, "ä", "a b"])
def test_manifest_cache_stays_in_its_folder(name: str, kept: ManifestCache, tmp_path: Path) -> None:
    kept.put(replace(MANIFEST, name=name), QUESTION)
    assert [manifest.name for manifest in kept.manifests()] == [name]
    assert len(names(tmp_path / "kept")) == 1
    assert names(tmp_path) == ["kept"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
PLACES: list[list[str | int]] = [
    ["version"], ["asked"], ["manifest"], ["manifest", "name"], ["manifest", "files"], ["manifest", "files", 0],
    ["manifest", "files", 0, "name"], ["manifest", "files", 0, "size"], ["manifest", "files", 0, "sha256"],
    ["manifest", "files", 0, "sources"], ["manifest", "files", 0, "sources", 0, "path"],
    ["manifest", "files", 0, "sources", 0, "repository"], ["manifest", "files", 0, "sources", 1, "member"],
    ["manifest", "projector"], ["manifest", "chat_template"], ["manifest", "context_length"], ["manifest", "origin"],
]  # fmt: skip


@given(st.sampled_from(PLACES), json_values | st.sampled_from(["../x", "a/../b.gguf", "/etc/passwd", "x" * 5000]))
def test_manifest_cache_ignores_changed_files(place: list[str | int], value: object) -> None:
    asked = {"repository": "org/repo"}
    data: object = json.loads(json.dumps({"version": 1, "asked": asked, "manifest": kept_module.asdict(MANIFEST)}))
    *steps, last = place
    inner: object = data
    for step in steps:
        inner = inner[step]  # type: ignore[index]
    inner[last] = value  # type: ignore[index]
    found = kept_module.parse(json.dumps(data).encode())
    if found is not None:
        manifest = found[1]
        assert all(is_file_name(file.name) and file.size > 0 for file in manifest.all_files)
        assert all(
            is_repository_path(source.path)
            for file in manifest.all_files
            for source in file.sources
            if isinstance(source, HubSource)
        )


def test_unfinished_of_an_unreadable_folder_is_empty(store: Store) -> None:
    store.prepare()
    with closed(store.folder):
        assert store.resumable_bytes(FILE) == 0
        assert store.unfinished() == set()
        with pytest.raises(DownloadFailed, match="cannot be written"):
            store.prepare()
        with pytest.raises(InvalidModelFile, match=r"cannot be opened: Permission denied.*Make it readable"):
            read_header(store.folder / "m.gguf")
