"""Verification of model files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_hub import FakeHub
from gguf_samples import write_sample

from meshllm.models.catalog.catalog import Catalog
from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.library import verify
from meshllm.models.library.inventory import InventoryItem, inventory
from meshllm.models.library.store import Store
from meshllm.models.library.verify import FileVerification, VerifyVerdict, verify_item


@pytest.fixture
def catalog(entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    found = Catalog((entry,))
    monkeypatch.setattr(verify, "load", lambda: found)
    return found


def proofs(store: Store, catalog: Catalog) -> list[FileVerification]:
    return [
        found
        for item in inventory(store, catalog=catalog)
        for found in verify_item(item, store, lambda path, done: None)
    ]


def put(store: Store, content: bytes, name: str = "model.gguf") -> Path:
    store.prepare()
    path = store.folder / name
    path.write_bytes(content)
    return path


def test_verify_item_records_a_correct_file(store: Store, catalog: Catalog, fake: FakeHub) -> None:
    path = put(store, fake.content)
    heard: list[int] = []
    (item,) = inventory(store, catalog=catalog)
    (found,) = verify_item(item, store, lambda where, done: heard.append(done))
    assert (found.verdict, found.sha256, found.expected, found.sound) == (
        VerifyVerdict.SOUND,
        fake.sha256,
        fake.sha256,
        True,
    )
    assert heard[-1] == len(fake.content)
    assert store.known_digest(path) == fake.sha256
    assert store.chunk_digests(ModelFile("", len(fake.content), fake.sha256)) is not None


def test_verify_item_finds_a_flipped_bit(store: Store, catalog: Catalog, fake: FakeHub) -> None:
    path = put(store, fake.content)
    store.record(path, fake.sha256)
    facts = path.stat()
    path.write_bytes(fake.content[:-1] + bytes([fake.content[-1] ^ 1]))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert store.known_digest(path) == fake.sha256, "nothing but reading it can tell"
    (found,) = proofs(store, catalog)
    assert (found.verdict, found.expected, found.sound) == (VerifyVerdict.DAMAGED, fake.sha256, False)
    assert store.known_digest(path) is None, "it is not called verified any more"


def test_verify_item_finds_a_truncated_file(store: Store, catalog: Catalog, fake: FakeHub) -> None:
    put(store, fake.content[: len(fake.content) // 2])
    (found,) = proofs(store, catalog)
    assert (found.verdict, found.expected) == (VerifyVerdict.DAMAGED, fake.sha256)


def test_verify_item_records_a_user_file_and_accepts_its_change(store: Store, catalog: Catalog) -> None:
    store.prepare()
    mine = write_sample(store.folder / "mine.gguf")
    (found,) = proofs(store, catalog)
    assert (found.verdict, found.sound, found.expected) == (VerifyVerdict.FIRST_READ, True, "")
    assert proofs(store, catalog)[0].verdict is VerifyVerdict.SOUND
    write_sample(mine, tokens=30)
    (found,) = proofs(store, catalog)
    assert (found.verdict, found.sound) == (VerifyVerdict.CHANGED, True)
    mine.write_bytes(mine.read_bytes()[:500])
    (found,) = proofs(store, catalog)
    assert found.verdict is VerifyVerdict.DAMAGED
    assert "not a usable GGUF file" in found.reason


def test_verify_item_rejects_a_changed_downloaded_file(store: Store, catalog: Catalog, fake: FakeHub) -> None:
    """A manifest has its digest, so it is not a user's file."""
    path = put(store, fake.content, "other-name.gguf")
    store.record(path, fake.sha256)
    store.manifest_cache.put(Manifest("fetched", (ModelFile("other-name.gguf", len(fake.content), fake.sha256),)))
    write_sample(path)
    (found,) = proofs(store, catalog)
    assert (found.verdict, found.expected) == (VerifyVerdict.DAMAGED, fake.sha256)


def test_verify_item_uses_the_digest_of_the_hub_cache(store: Store, catalog: Catalog, fake: FakeHub) -> None:
    cache = Path("~/.cache/huggingface/hub/models--org--repo").expanduser()
    snapshot = cache / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / ("9" * 64)).write_bytes(fake.content)
    (snapshot / "theirs.gguf").symlink_to(cache / "blobs" / ("9" * 64))
    (found,) = proofs(store, catalog)
    assert (found.verdict, found.expected) == (VerifyVerdict.DAMAGED, "9" * 64)


def test_verify_item_reports_missing_parts(store: Store, catalog: Catalog, fake: FakeHub, entry: CatalogEntry) -> None:
    store.prepare()
    store.partial_path(entry.files[0]).write_bytes(fake.content[:9])
    (found,) = proofs(store, catalog)
    assert (found.verdict, found.sound) == (VerifyVerdict.MISSING, False)


def test_verify_item_reports_a_file_removed_meanwhile(store: Store, catalog: Catalog, fake: FakeHub) -> None:
    path = put(store, fake.content)
    items: list[InventoryItem] = inventory(store, catalog=catalog)
    path.unlink()
    assert [found.verdict for found in verify_item(items[0], store, lambda where, done: None)] == [
        VerifyVerdict.MISSING
    ]


def test_verify_item_does_not_record_a_file_written_meanwhile(store: Store, catalog: Catalog, fake: FakeHub) -> None:
    path = put(store, fake.content)
    (item,) = inventory(store, catalog=catalog)

    def write(where: Path, done: int) -> None:
        path.write_bytes(fake.content + b"more")

    (found,) = verify_item(item, store, write)
    assert found.verdict is VerifyVerdict.CHANGED
    assert store.known_digest(path) is None
