"""Downloads for the mesh's demand: bounded over all runs, disk space stays free, only what was allowed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshllm.daemon.demand_downloads import FILE, CatalogSizes, DemandDownloads, catalogued
from meshllm.errors import NotEnoughSpace
from meshllm.models.catalog.catalog import load
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.library.store import Store
from meshllm.models.transfer.lease_cache import KEEP_FREE_BYTES

LIMIT = 1000


def model(name: str, size: int) -> Manifest:
    return Manifest(name, (ModelFile(f"{name}.gguf", size, name.encode().hex().ljust(64, "0")),))


class Home:
    """A home and a model folder; `start` is another run of the daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir()
        self.store = Store(folder / "models")

    def start(self, limit: int = LIMIT) -> DemandDownloads:
        return DemandDownloads(self.folder / "home", self.store, limit)

    def admit(self, downloads: DemandDownloads, manifest: Manifest, most: int = LIMIT) -> Path:
        """Download the model; returns its path."""
        downloads.allow(manifest.name, most)
        admit = downloads.admission(manifest.name)
        assert admit is not None
        admit(manifest)
        path = self.store.folder / manifest.files[0].name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(manifest.size))
        return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_downloads_are_bounded_over_all_runs_and_a_removed_file_frees_its_part(home: Home) -> None:
    downloads = home.start()
    assert downloads.room() == LIMIT
    path = home.admit(downloads, model("a", 600))
    assert downloads.room() == 400
    for run in (downloads, home.start()):
        assert run.room() == 400
        with pytest.raises(NotEnoughSpace, match="--max-download"):
            home.admit(run, model("b", 401))
    home.admit(home.start(), model("b", 400))
    path.unlink()
    assert home.start().room() == 600


def test_nothing_is_downloaded_without_the_owners_word_or_a_decision(home: Home) -> None:
    assert home.start(0).room() == 0
    downloads = home.start()
    assert downloads.admission("a") is None
    downloads.allow("a", LIMIT)
    assert downloads.admission("a") is not None
    downloads.forget("a")
    assert downloads.admission("a") is None


def test_file_larger_than_was_said_is_refused(home: Home) -> None:
    with pytest.raises(NotEnoughSpace, match="memory"):
        home.admit(home.start(), model("a", 500), most=499)
    assert not (home.folder / "home" / FILE).exists()


def test_disk_space_stays_free(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, room in ((KEEP_FREE_BYTES - 1, 0), (KEEP_FREE_BYTES + 300, 300), (KEEP_FREE_BYTES * 2, LIMIT)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert home.start().room() == room
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=KEEP_FREE_BYTES + 300))
    with pytest.raises(NotEnoughSpace):
        home.admit(home.start(), model("a", 301))


@pytest.mark.parametrize("text", ["{", "[1]", '[["a", "b", "c"]]', "null", "[[" * 5000])
def test_damaged_file_of_the_home_counts_for_nothing(home: Home, text: str) -> None:
    (home.folder / "home" / FILE).write_text(text)
    assert home.start().room() == LIMIT


def test_only_exact_names_of_the_catalogue_are_known() -> None:
    entry = load().entries[0]
    assert CatalogSizes()[entry.name] == entry.size
    assert catalogued(entry.name) is entry
    for name in (entry.name.upper(), f"{entry.name}.gguf", "org/repo", "../x"):
        assert catalogued(name) is None
        assert name not in CatalogSizes()
