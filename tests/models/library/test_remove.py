"""Removal of models."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hub import FakeHub
from filelock import FileLock
from gguf_samples import write_parts, write_sample

from meshllm.errors import EnvironmentFailure, UsageError
from meshllm.models.catalog.catalog import Catalog
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.library import remove
from meshllm.models.library.inventory import FileState, InventoryItem, inventory
from meshllm.models.library.remove import Removal
from meshllm.models.library.select import find
from meshllm.models.library.store import Store
from tests import engine_samples

NOTHING = Catalog(())


def look(store: Store) -> dict[str, InventoryItem]:
    return {item.name: item for item in inventory(store, catalog=NOTHING)}


def planned(name: str, store: Store) -> Removal:
    found = look(store)
    return remove.plan(found[name], list(found.values()), store)


def gone(name: str, store: Store) -> Removal:
    told = planned(name, store)
    remove.remove(told, store)
    return told


def left(store: Store) -> set[str]:
    """All files, our records included."""
    return {str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()}


def file_of(path: Path, digest: str) -> ModelFile:
    return ModelFile(path.name, path.stat().st_size, digest)


def test_remove_deletes_parts_projector_records_and_manifest(store: Store) -> None:
    store.prepare()
    write_sample(store.folder / "stays.gguf")
    before = left(store)
    folder = store.folder / "org" / "repo"
    parts = write_parts(folder, "big", 2)
    sees = engine_samples.projector(folder / "mmproj.gguf")
    digests = {path: character * 64 for path, character in zip((*parts, sees), "abc", strict=True)}
    for path, digest in digests.items():
        store.record(path, digest)
        store.record_chunks(digest, bytes(32))
    store.manifest_cache.put(
        Manifest("Big", tuple(file_of(path, digests[path]) for path in parts), file_of(sees, digests[sees]))
    )
    size = sum(path.stat().st_size for path in digests)
    told = gone("Big", store)
    assert set(told.files) == set(digests)
    assert told.freed == size
    assert left(store) - before <= {".mesh-llm/seen.json"}
    assert not folder.parent.exists(), "folders that are empty now go too"
    assert set(look(store)) == {"stays"}


def test_remove_keeps_a_projector_that_another_model_needs(store: Store) -> None:
    store.prepare()
    sees = engine_samples.projector(store.folder / "mmproj.gguf")
    store.record(sees, "c" * 64)
    for name, digest in (("one", "a" * 64), ("two", "b" * 64)):
        path = write_sample(store.folder / f"{name}.gguf")
        store.record(path, digest)
        store.manifest_cache.put(Manifest(name, (file_of(path, digest),), file_of(sees, "c" * 64)))
    told = gone("one", store)
    assert told.kept == ((sees, "two needs it"),)
    assert sees.exists()
    assert gone("two", store).files == (store.folder / "two.gguf", sees)
    assert not sees.exists()


def test_find_rejects_a_projector_as_a_model(store: Store) -> None:
    store.prepare()
    (store.folder / "org" / "repo").mkdir(parents=True)
    one = write_sample(store.folder / "org" / "repo" / "one.gguf")
    sees = engine_samples.projector(one.with_name("mmproj.gguf"))
    everything = list(look(store).values())
    found = find(str(sees), everything, store)
    assert (found.state, found.files) == (FileState.DAMAGED, (sees,))
    told = remove.plan(found, everything, store)
    assert (told.files, told.kept) == ((), ((sees, "one needs it"),))
    remove.remove(told, store)
    assert sees.exists()
    assert find(str(one), everything, store).name == "one"


def test_remove_deletes_a_partial_download_unless_it_is_running(store: Store) -> None:
    store.prepare()
    file = ModelFile("m.gguf", 100_000, "a" * 64)
    store.manifest_cache.put(Manifest("m", (file,)))
    store.partial_path(file).write_bytes(bytes(5000))
    store.partial_path(file, "state").write_bytes(b"x")
    told = planned("m", store)
    assert (told.files, told.unfinished) == ((), (file,))
    assert 0 <= told.freed <= 5000, "some file systems say how much that is only later"
    with FileLock(store.lock(file).lock_file), pytest.raises(EnvironmentFailure, match="being downloaded"):
        remove.remove(told, store)
    assert store.partial_path(file).exists()
    remove.remove(told, store)
    assert store.unfinished() == set()
    assert store.manifest_cache.manifests() == []
    assert look(store) == {}


def test_remove_rejects_models_outside_the_store(store: Store) -> None:
    folder = Path("~/.lmstudio/models/org/repo").expanduser()
    folder.mkdir(parents=True)
    theirs = write_sample(folder / "theirs.gguf")
    with pytest.raises(UsageError, match="belongs to LM Studio"):
        planned("theirs", store)
    assert theirs.exists()


def test_remove_deletes_a_link_and_not_its_target(store: Store, tmp_path: Path) -> None:
    store.prepare()
    real = write_sample(tmp_path / "real.gguf")
    (store.folder / "linked.gguf").symlink_to(real)
    told = gone("linked", store)
    assert told.freed < 1000
    assert real.exists()
    assert look(store) == {}


def test_remove_deletes_damaged_and_oddly_named_files(store: Store, fake: FakeHub) -> None:
    store.prepare()
    (store.folder / "bad \x1b[31m.gguf").write_bytes(b"GGUF nonsense")
    (name,) = look(store)
    gone(name, store)
    assert look(store) == {}


def test_remove_keeps_chunk_digests_of_a_copy(store: Store) -> None:
    store.prepare()
    for name in ("one", "two"):
        store.record(write_sample(store.folder / f"{name}.gguf"), "a" * 64)
    store.record_chunks("a" * 64, bytes(32))
    gone("one", store)
    chunks = store.folder / ".mesh-llm" / "chunks" / ("a" * 64)
    assert chunks.exists()
    gone("two", store)
    assert not chunks.exists()
