"""Models that can be served from this disk, by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import FakeHub
from gguf_samples import write_parts, write_sample

from meshllm.models.catalog.catalog import Catalog, CatalogEntry
from meshllm.models.library import scan as on_disk
from meshllm.models.library.header_cache import FileLook
from meshllm.models.library.scan import aliases, look, scan
from meshllm.models.library.store import Store


def test_scan_of_an_empty_or_missing_folder_is_empty(tmp_path: Path) -> None:
    assert scan(Store(tmp_path / "nowhere"), catalog=Catalog(())) == {}
    (tmp_path / "file").write_text("x")
    assert scan(Store(tmp_path / "file"), catalog=Catalog(())) == {}


def test_scan_names_files_after_themselves(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine = write_sample(tmp_path / "mine.gguf")
    other = write_sample(tmp_path / "Other.GGUF")
    assert scan(store, catalog=Catalog(())) == {"mine": mine, "Other": other}


def test_scan_skips_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    good = write_sample(tmp_path / "good.gguf")
    found = scan(Store(tmp_path), named=[tmp_path / "missing.gguf"], catalog=Catalog(()))
    assert found["good"] == good
    assert not found.keys() & {"bad", "empty", "folder", "notes", "gone", "missing"}


def test_scan_includes_named_files_anywhere(tmp_path: Path) -> None:
    named = write_sample(tmp_path / "mine.gguf")
    assert scan(Store(tmp_path / "models"), named=[named], catalog=Catalog(())) == {"mine": named}


def test_scan_includes_complete_catalog_models(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    catalog = Catalog((entry,))
    assert scan(store, catalog=catalog) == {}
    store.prepare()
    path = store.path(entry.files[0])
    path.write_bytes(fake.content[:-1])
    assert entry.name not in scan(store, catalog=catalog)
    path.write_bytes(fake.content)
    assert scan(store, catalog=catalog) == {}, "its digest is not known yet"
    assert look(store, catalog=catalog).unread == (path,)
    store.record(path, entry.sha256)
    found = scan(store, catalog=catalog)
    assert found[entry.name] == entry
    assert set(found) == {entry.name, path.name.removesuffix(".gguf")}


def test_aliases_lists_further_names_of_one_file(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    store.prepare()
    path = store.path(entry.files[0])
    path.write_bytes(fake.content)
    assert entry.manifest is not None
    store.manifest_cache.put(replace(entry.manifest, name="as-downloaded"))
    write_sample(store.folder / "another.gguf")
    elsewhere = store.folder / "copies" / "copy.gguf"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(fake.content)
    store.record(path, entry.files[0].sha256)
    found = scan(store, catalog=Catalog((entry,)))
    stem = path.stem
    assert set(found) == {entry.name, "as-downloaded", stem, "another", "copy"}
    assert aliases(found, store) == {"as-downloaded": entry.name, stem: entry.name}
    store.record(elsewhere, entry.files[0].sha256)
    told = aliases(found, store)
    assert told == {"as-downloaded": entry.name, stem: entry.name, "copy": entry.name}, (
        "bytes that are known to be equal"
    )


def test_scan_reads_each_header_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.prepare()
    whole = write_sample(store.folder / "a.gguf")
    parts = write_parts(store.folder, "b")
    (store.folder / "bad.gguf").write_bytes(b"x")
    expected = {"a": whole, "b": parts[0]}
    assert scan(store, catalog=Catalog(())) == expected
    read: list[Path] = []
    monkeypatch.setattr(on_disk, "_look", lambda path, store: read.append(path) or FileLook(is_model=True))
    assert scan(store, catalog=Catalog(())) == expected
    assert read == []
    write_sample(store.folder / "bad.gguf")
    assert scan(store, catalog=Catalog(())) == {**expected, "bad": store.folder / "bad.gguf"}
    assert read == [store.folder / "bad.gguf"]
    parts[1].unlink()
    assert "b" not in scan(store, catalog=Catalog(()))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 1, "files": [[1]]}', b"[" * 99_999, b"\xff"])
def test_scan_ignores_a_damaged_header_cache(damage: bytes, store: Store) -> None:
    store.prepare()
    path = write_sample(store.folder / "a.gguf")
    (store.folder / ".mesh-llm" / "seen.json").write_bytes(damage)
    assert scan(store, catalog=Catalog(())) == {"a": path}
    assert scan(store, catalog=Catalog(())) == {"a": path}


def test_scan_creates_no_folder(store: Store) -> None:
    assert scan(store, catalog=Catalog(())) == {}
    assert not store.folder.exists()


def test_size_of_a_model_is_that_of_all_its_files(
    tmp_path: Path, store: Store, entry: CatalogEntry, fake: FakeHub
) -> None:
    one = write_sample(tmp_path / "one.gguf")
    parts = write_parts(tmp_path, "big", 3)
    assert on_disk.size_of(one, store) == one.stat().st_size
    assert on_disk.size_of(parts[0], store) == sum(path.stat().st_size for path in parts)
    assert on_disk.size_of(entry, store) == entry.size
    parts[2].unlink()
    assert on_disk.size_of(parts[0], store) == 0
