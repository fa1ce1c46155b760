"""Names of the catalogue count only with the catalogue's digests (audit, C2 and row 4)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from fake_hub import FakeHub
from gguf_samples import write_parts, write_sample

from meshllm.models.catalog.catalog import Catalog
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.manifest import HubReference, Manifest, ModelFile
from meshllm.models.library.inventory import FileState, Presence, catalog_state, inventory
from meshllm.models.library.scan import Misnamed, look
from meshllm.models.library.store import Store


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def planted(store: Store, name: str, *, layers: int = 3) -> Path:
    """A model that is not the catalogue's, hashed."""
    store.prepare()
    path = write_sample(store.folder / name, layers=layers)
    store.record(path, digest(path))
    return path


def same_size(store: Store, entry: CatalogEntry, fake: FakeHub) -> Path:
    """Other content with the catalogue's file name and size."""
    store.prepare()
    path = store.folder / entry.file_name
    path.write_bytes(fake.content[:-4] + b"evil")
    return path


def test_other_content_is_not_the_model_under_any_of_its_names(store: Store, entry: CatalogEntry) -> None:
    catalog = Catalog((replace(entry, aliases=("other:name",)),))
    for name in ("Model.gguf", "MODEL.gguf", "model.gguf", "Model-Q8_0.gguf", "other:name.gguf"):
        path = planted(store, name)
        found = look(store, catalog=catalog)
        assert (found.models, found.unread) == ({}, ())
        (each,) = found.misnamed
        assert f"sha256 {digest(path)[:12]} instead of {entry.sha256[:12]}" in each.reason
        assert f"--model {path}" in each.reason
        path.unlink()


def test_files_of_other_names_are_not_judged(store: Store, entry: CatalogEntry) -> None:
    names = ("Model-Q5_K_M", "model-mine", "my-Model")
    paths = {name: planted(store, f"{name}.gguf") for name in names}
    for path in paths.values():
        store.forget(path)
    assert look(store, catalog=Catalog((entry,))).models == paths


def test_owner_may_name_the_file_by_its_path(store: Store, entry: CatalogEntry) -> None:
    path = planted(store, "Model.gguf")
    found = look(store, named=[path], catalog=Catalog((entry,)))
    assert found.models == {"Model": path}


def test_file_of_the_same_size_counts_after_it_was_hashed(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    catalog, path = Catalog((entry,)), same_size(store, entry, fake)
    found = look(store, catalog=catalog)
    assert (found.models, found.unread) == ({}, (path,))
    store.record(path, digest(path))
    found = look(store, catalog=catalog)
    assert (found.models, found.unread) == ({}, ())
    assert catalog_state(entry, store, []).presence is Presence.ABSENT
    path.write_bytes(fake.content)  # another size or time: to be read again
    assert look(store, catalog=catalog).unread == (path,)
    store.record(path, digest(path))
    found = look(store, catalog=catalog)
    assert (set(found.models), found.misnamed) == ({"Model", "model"}, ())


def test_file_of_another_size_is_not_read(store: Store, entry: CatalogEntry) -> None:
    path = planted(store, "model.gguf")
    store.forget(path)
    found = look(store, catalog=Catalog((entry,)))
    assert (found.models, found.unread) == ({}, ())
    assert f"{path.stat().st_size:,} bytes instead of {entry.size:,}" in found.misnamed[0].reason


def test_each_part_has_to_be_the_catalogs(store: Store, entry: CatalogEntry) -> None:
    store.prepare()
    parts = write_parts(store.folder, "big", 3)
    files = tuple(ModelFile(path.name, path.stat().st_size, digest(path)) for path in parts)
    catalog = Catalog((replace(entry, name="Big", files=files),))
    for path in parts[:2]:
        store.record(path, digest(path))
    found = look(store, catalog=catalog)
    assert (found.models, found.unread) == ({}, (parts[2],))
    store.record(parts[2], "e" * 64)
    assert look(store, catalog=catalog).models == {}
    store.record(parts[2], files[2].sha256)
    assert set(look(store, catalog=catalog).models) == {"Big", "big"}


def test_download_of_another_repository_with_the_same_name_is_not_the_model(store: Store, entry: CatalogEntry) -> None:
    path = planted(store, "theirs.gguf")
    manifest = Manifest("Model", (ModelFile(path.name, path.stat().st_size, digest(path)),))
    store.manifest_cache.put(manifest)
    found = look(store, catalog=Catalog((entry,)))
    assert found.models == {"theirs": path}
    assert [(each.name, each.wanted) for each in found.misnamed] == [("Model", manifest)]


def test_name_of_a_model_whose_digest_only_the_hub_knows(store: Store, entry: CatalogEntry) -> None:
    hub = replace(entry, files=(), hub=HubReference("Model", "org/repo", "model.gguf"), listed_size=10)
    path = planted(store, "Model.gguf")
    (each,) = look(store, catalog=Catalog((hub,))).misnamed
    assert each == Misnamed("Model", path, reason=each.reason)
    assert "`mesh-llm download Model` checks it" in each.reason
    known = replace(hub, hub=replace(hub.hub, sha256=digest(path)))  # type: ignore[type-var]
    assert look(store, catalog=Catalog((known,))).models == {"Model": path}


def test_inventory_says_why_a_file_is_not_the_model(store: Store, entry: CatalogEntry) -> None:
    path = planted(store, "model.gguf")
    (item,) = inventory(store, catalog=Catalog((entry,)))
    assert (item.name, item.state, item.files, item.entry) == ("model", FileState.MISNAMED, (path,), None)
    assert "catalogue's Model and other content" in item.reason
