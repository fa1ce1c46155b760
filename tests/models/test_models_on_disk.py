"""What lies on a disk and could be served, by the names that callers use."""

from __future__ import annotations

from pathlib import Path

from fake_hub import FakeHub
from gguf_samples import write_sample

from meshllm.models.catalog import Catalog, CatalogEntry
from meshllm.models.on_disk import scan
from meshllm.models.store import Store


def test_an_empty_or_missing_folder_has_nothing(tmp_path: Path) -> None:
    assert scan(Store(tmp_path / "nowhere"), catalog=Catalog(())) == {}
    (tmp_path / "file").write_text("x")
    assert scan(Store(tmp_path / "file"), catalog=Catalog(())) == {}


def test_files_go_by_their_own_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine = write_sample(tmp_path / "mine.gguf")
    other = write_sample(tmp_path / "Other.GGUF")
    assert scan(store, catalog=Catalog(())) == {"mine": mine, "Other": other}


def test_what_is_no_model_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    good = write_sample(tmp_path / "good.gguf")
    found = scan(Store(tmp_path), named=[tmp_path / "missing.gguf"], catalog=Catalog(()))
    assert found["good"] == good
    assert not found.keys() & {"bad", "empty", "folder", "notes", "gone", "missing"}


def test_a_named_file_counts_wherever_it_lies(tmp_path: Path) -> None:
    named = write_sample(tmp_path / "mine.gguf")
    assert scan(Store(tmp_path / "models"), named=[named], catalog=Catalog(())) == {"mine": named}


def test_the_catalogues_models_count_when_they_are_whole(store: Store, entry: CatalogEntry, fake: FakeHub) -> None:
    catalog = Catalog((entry,))
    assert scan(store, catalog=catalog) == {}
    store.prepare()
    path = store.path(entry.files[0])
    path.write_bytes(fake.content[:-1])
    assert entry.name not in scan(store, catalog=catalog)
    path.write_bytes(fake.content)
    found = scan(store, catalog=catalog)
    assert found[entry.name] == entry
    assert set(found) == {entry.name, path.name.removesuffix(".gguf")}
