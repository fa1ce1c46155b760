"""Audit, M4: by default other nodes get what the catalogue knows or the mesh runs, and nothing else of the owner's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from gguf_samples import write_sample

from meshllm.models.catalog.catalog import load
from meshllm.models.library.store import Store
from meshllm.models.p2p.seed_index import StoreSeedIndex
from meshllm.models.p2p.seeder import SeedFile
from meshllm.models.p2p.share_policy import Share, SharePolicy
from meshllm.wire.mesh import files as w

PRIVATE = "my-fine-tune"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one private model, which was hashed once."""
    made = Store(tmp_path / "models")
    made.folder.mkdir()
    made.prepare()
    write_sample(made.folder / f"{PRIVATE}.gguf")
    made.record(made.folder / f"{PRIVATE}.gguf", digest(made))
    return made


def digest(store: Store) -> str:
    """The digest of the private model."""
    return hashlib.sha256((store.folder / f"{PRIVATE}.gguf").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("share", "running", "given"),
    [
        (Share.KNOWN, (), False),
        (Share.KNOWN, ("Other",), False),
        (Share.KNOWN, (PRIVATE.upper(),), True),
        (Share.ALL, (), True),
    ],
)
async def test_private_model_is_found_by_name_and_digest_only_if_the_mesh_runs_it(
    store: Store, share: Share, running: tuple[str, ...], given: bool
) -> None:
    policy = SharePolicy(share, store, lambda: frozenset(running))
    index = StoreSeedIndex(store, lambda: False, policy)
    try:
        found = await index.find(PRIVATE)
        assert isinstance(found, w.FoundModels)
        assert bool(found.models) is given
        looked_up = await index.lookup(digest(store))
        if given:
            assert isinstance(looked_up, SeedFile) or looked_up.reason is w.FileRefusalReason.PREPARING
        else:
            assert looked_up == w.FileRefusal(w.FileRefusalReason.ABSENT)
        assert policy.allows_model(PRIVATE, store.folder / f"{PRIVATE}.gguf") is given
    finally:
        await index.close()


async def test_private_model_is_not_hashed_for_a_peer(store: Store) -> None:
    path = store.folder / f"{PRIVATE}.gguf"
    store.forget(path)
    index = StoreSeedIndex(store, lambda: False, SharePolicy(Share.KNOWN, store))
    try:
        assert await index.find(PRIVATE) == w.FoundModels(())
        assert store.known_digest(path) is None
    finally:
        await index.close()


def test_catalogue_is_known_by_digest(store: Store) -> None:
    policy = SharePolicy(Share.KNOWN, store)
    entry = next(entry for entry in load().entries if entry.sha256)
    assert policy.is_known(entry.sha256)
    assert not policy.is_known("ab" * 32)
    assert policy.allows_model(entry.name, entry)
