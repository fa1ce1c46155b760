"""The inventory of models on this disk, and names of its items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import FakeHub
from gguf_samples import write_parts, write_sample

from meshllm.errors import AmbiguousModel, UnknownModel, UsageError
from meshllm.models.catalog.catalog import Catalog
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.manifest import HubReference, HubSource, Manifest, ModelFile
from meshllm.models.library import other_apps
from meshllm.models.library.inventory import FileState, InventoryItem, ItemState, Presence, catalog_state, inventory
from meshllm.models.library.select import by_name, find
from meshllm.models.library.store import Store
from tests import engine_samples

NOTHING = Catalog(())


def look(store: Store, catalog: Catalog = NOTHING) -> dict[str, InventoryItem]:
    return {item.name: item for item in inventory(store, catalog=catalog)}


def lm_studio(name: str) -> Path:
    """A path in LM Studio's folder."""
    folder = Path("~/.lmstudio/models/org/repo").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def put(store: Store, entry: CatalogEntry, fake: FakeHub) -> Path:
    store.prepare()
    path = store.path(entry.files[0])
    path.write_bytes(fake.content)
    return path


def test_empty_store_lists_nothing(store: Store) -> None:
    assert look(store) == {}


def test_catalog_model_is_listed_once(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    path = put(store, entry, fake)
    catalog = Catalog((entry,))
    (item,) = look(store, catalog).values()
    assert (item.name, item.state, item.files, item.entry) == ("Model", FileState.UNVERIFIED, (path,), entry)
    assert item.other_names == ("model",)
    store.record(path, fake.sha256)
    (item,) = look(store, catalog).values()
    assert (item.state, item.size, item.arrived) == (FileState.VERIFIED, len(fake.content), len(fake.content))


def test_parts_and_projectors_are_listed_with_their_model(store: Store) -> None:
    mine = write_sample(store.folder / "mine.gguf") if store.folder.mkdir() is None else Path()
    parts = write_parts(store.folder / "org" / "repo", "big", 3)
    sees = engine_samples.projector(store.folder / "org" / "repo" / "mmproj-big.gguf")
    found = look(store)
    assert set(found) == {"mine", "big"}
    assert found["mine"].files == (mine,)
    assert found["big"].files == (*parts, sees)
    assert found["big"].size == sum(path.stat().st_size for path in (*parts, sees))


def test_models_of_other_apps_are_listed_with_the_program(store: Store) -> None:
    write_sample(lm_studio("theirs.gguf"))
    item = look(store)["theirs"]
    assert (item.program, item.state) == ("LM Studio", FileState.UNVERIFIED)


def test_invalid_files_are_listed_with_the_reason(store: Store) -> None:
    store.folder.mkdir()
    (store.folder / "bad\x1b[2J.gguf").write_bytes(b"GGUF nonsense")
    engine_samples.projector(store.folder / "mmproj-x.gguf")
    found = look(store)
    assert {item.state for item in found.values()} == {FileState.DAMAGED}
    assert "vision projector" in found["mmproj-x"].reason or "mmproj" in found["mmproj-x"].reason


def test_damaged_catalog_file_has_the_catalogs_name(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    put(store, entry, fake).write_bytes(fake.content[: len(fake.content) // 2])
    (item,) = look(store, Catalog((entry,))).values()
    assert (item.state, item.entry, item.other_names) == (FileState.DAMAGED, entry, ("Model",))
    assert item.manifest == entry.manifest


def test_partial_download_is_listed_with_its_progress(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    store.prepare()
    file = entry.files[0]
    store.partial_path(file).write_bytes(fake.content[:1000])
    (item,) = look(store, Catalog((entry,))).values()
    assert (item.name, item.state, item.arrived, item.size) == ("Model", FileState.PARTIAL, 1000, file.size)
    store.partial_path(ModelFile("x.gguf", 5, "d" * 64)).write_bytes(b"x")
    unknown = look(store, Catalog((entry,)))["unknown-dddddddddddd"]
    assert (unknown.state, unknown.arrived, unknown.reason) == (
        FileState.PARTIAL,
        1,
        "unknown model (no manifest for this partial file)",
    )


def test_model_with_one_of_two_parts_is_partial(store: Store, fake: FakeHub) -> None:
    store.prepare()
    first, second = ModelFile("m-00001-of-00002.gguf", 4, "a" * 64), ModelFile("m-00002-of-00002.gguf", 6, "b" * 64)
    store.manifest_cache.put(Manifest("m", (first, second)))
    (store.folder / first.name).write_bytes(b"GGUF")
    store.record(store.folder / first.name, first.sha256)
    store.partial_path(second).write_bytes(b"abc")
    item = look(store)["m"]
    assert (item.state, item.arrived, item.size) == (FileState.PARTIAL, 7, 10)


# -- names


def test_find_resolves_a_name(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    path = put(store, entry, fake)
    write_sample(store.folder / "mine-v1.gguf")
    write_sample(store.folder / "mine-v2.gguf")
    items = inventory(store, catalog=Catalog((entry,)))
    for name in ("Model", "MODEL", "model", "model.gguf", str(path)):
        assert find(name, items, store).name == "Model"
    assert find("mine v2", items, store).name == "mine-v2"
    with pytest.raises(AmbiguousModel):
        find("mine", items, store)
    with pytest.raises(UnknownModel, match="Qwen3-8B is not on this disk"):
        find("qwen3 8b", items, store)
    for odd in ("", "\x1b[2J", "a\nb", "~nobody-here/x.gguf", "\0"):
        with pytest.raises((UnknownModel, UsageError)):
            find(odd, items, store)


def test_find_resolves_an_untypable_name_by_path(store: Store) -> None:
    store.folder.mkdir()
    odd = write_sample(store.folder / "odd\x1b[31m.gguf")
    items = inventory(store, catalog=NOTHING)
    assert (by_name(str(odd), items) or items[0]).files == (odd,)
    assert find(str(odd), items, store).files == (odd,)


# -- the catalogue's


def test_catalog_state_of_an_entry(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    def told() -> ItemState:
        return catalog_state(entry, store, list(other_apps.gguf_files()))

    assert told() == ItemState(Presence.ABSENT)
    store.prepare()
    store.partial_path(entry.files[0]).write_bytes(fake.content[: len(fake.content) // 2])
    assert told() == ItemState(Presence.PARTIAL, 50)
    theirs = lm_studio("model.gguf")
    theirs.write_bytes(fake.content)
    assert told() == ItemState(Presence.ELSEWHERE, program="LM Studio")
    store.record(theirs, fake.sha256)
    assert told() == ItemState(Presence.ELSEWHERE, program="LM Studio")
    path = store.folder / "model.gguf"
    path.write_bytes(fake.content)
    store.record(path, fake.sha256)
    assert told() == ItemState(Presence.HERE)
    path.write_bytes(fake.content[::-1])
    theirs.unlink()
    assert told() == ItemState(Presence.UNVERIFIED)


def test_catalog_state_of_a_hub_entry_finds_its_file_name(store: Store, entry: CatalogEntry) -> None:
    asked = HubReference("Model", "org/repo", "model.gguf")
    hub = replace(entry, files=(), hub=asked, listed_size=10)
    assert catalog_state(hub, store, []) == ItemState(Presence.ABSENT)
    write_sample(lm_studio("org_repo_model.gguf"))
    assert catalog_state(hub, store, list(other_apps.gguf_files())).presence is Presence.ELSEWHERE
    store.prepare()
    file = ModelFile("model.gguf", 10, "e" * 64, (HubSource("org/repo", "c" * 40, "model.gguf"),))
    store.manifest_cache.put(Manifest("Model", (file,)), asked)
    (store.folder / "model.gguf").write_bytes(b"0123456789")
    store.record(store.folder / "model.gguf", file.sha256)
    assert catalog_state(hub, store, []) == ItemState(Presence.HERE)


def test_model_without_its_projector_is_partial(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    sees = replace(entry, projector=ModelFile("mmproj-Model.gguf", len(fake.content), "f" * 64))
    path = put(store, entry, fake)
    store.record(path, fake.sha256)
    assert catalog_state(sees, store, []) == ItemState(Presence.PARTIAL, 50)
