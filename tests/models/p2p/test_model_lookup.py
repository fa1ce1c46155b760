"""Lookup of a model by name in the mesh."""

from __future__ import annotations

from pathlib import Path

import pytest
from swarm_rig import content_of, rig

from meshllm.errors import AmbiguousModel, UnknownModel
from meshllm.models.catalog.catalog import load
from meshllm.models.hub.manifest import Manifest, ModelFile
from meshllm.models.p2p import model_lookup
from meshllm.models.p2p.model_lookup import find, verifiable_part
from meshllm.wire.mesh import files as w

ONE = w.OfferedModel("Ours", (w.OfferedFile("ours.gguf", 10, "ab" * 32),), None, 4096)
OTHER = w.OfferedModel("Ours", (w.OfferedFile("ours.gguf", 11, "cd" * 32),))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for a mesh that never appears."""
    monkeypatch.setattr(model_lookup, "JOIN_SECONDS", 0.05)


async def test_find_returns_the_model_that_all_peers_agree_on(tmp_path: Path) -> None:
    async with rig(tmp_path) as place:
        for name, models in (("a", (ONE,)), ("b", ()), ("c", (ONE, ONE))):
            _, index = await place.uploader(name, content_of(1))
            index.models = models
        found = await find(place.site, "Ours", ban=place.swarm.ban)
        assert found.files == (ModelFile("ours.gguf", 10, "ab" * 32),)
        assert found.context_length == 4096
        assert "a (" in found.origin
        assert "b (" not in found.origin
        assert isinstance(found, Manifest)


async def test_find_raises_when_peers_mean_different_models(tmp_path: Path) -> None:
    async with rig(tmp_path) as place:
        for name, model in (("a", ONE), ("b", OTHER)):
            _, index = await place.uploader(name, content_of(1))
            index.models = (model,)
        with pytest.raises(AmbiguousModel) as failure:
            await find(place.site, "Ours", ban=place.swarm.ban)
        for word in ("abababababab", "cdcdcdcdcdcd", "a (", "b ("):
            assert word in failure.value.advice
        # Where the digest is known beforehand, there is nothing to choose.
        found = await find(place.site, "Ours", sha256="cd" * 32, ban=place.swarm.ban)
        assert found.files[0].size == 11


async def test_find_asks_only_peers_that_are_accepted(tmp_path: Path) -> None:
    async with rig(tmp_path) as place:
        for name, model in (("a", ONE), ("b", OTHER)):
            _, index = await place.uploader(name, content_of(1))
            index.models = (model,)
        found = await find(place.site, "Ours", ban=place.swarm.ban, asks=lambda peer: str(peer).startswith("a"))
        assert found.files[0].sha256 == "ab" * 32
        with pytest.raises(UnknownModel):
            await find(place.site, "Ours", ban=place.swarm.ban, asks=lambda peer: False)


async def test_find_raises_when_no_peer_has_the_model(tmp_path: Path) -> None:
    async with rig(tmp_path) as place:
        await place.uploader("a", content_of(1))
        with pytest.raises(UnknownModel, match=r"no other node of the mesh has it \(asked 1\)"):
            await find(place.site, "Ours", ban=place.swarm.ban)


async def test_find_raises_without_peers(tmp_path: Path) -> None:
    async with rig(tmp_path) as place:
        with pytest.raises(UnknownModel, match="no other node"):
            await find(place.site, "Ours", ban=place.swarm.ban)
        place.site.settling = True
        with pytest.raises(UnknownModel, match="no other node"):
            await find(place.site, "Ours", ban=place.swarm.ban)


async def test_find_asks_again_while_a_peer_hashes_its_file(tmp_path: Path) -> None:
    async with rig(tmp_path) as place:
        _, index = await place.uploader("a", content_of(1))
        index.models = (ONE,)
        index.refusals = [w.FileRefusal(w.FileRefusalReason.PREPARING, 40, 1)]
        heard: list[str] = []
        await find(place.site, "Ours", ban=place.swarm.ban, tell=heard.append)
        assert len(heard) == 1
        assert "(40 %)" in heard[0]


async def test_find_survives_invalid_and_missing_answers(tmp_path: Path) -> None:
    async with rig(tmp_path) as place:
        fool = await place.liar("fool", b"x", lambda request, answer: b"\xff" * 40)
        gone = await place.liar("gone", b"x", lambda request, answer: None)
        dead = await place.liar("dead", b"x", lambda request, answer: answer)
        place.site.cut(dead)
        _, refusing = await place.uploader("refusing", content_of(1))
        refusing.refusals = [w.FileRefusal(w.FileRefusalReason.NOT_SHARED)]
        _, index = await place.uploader("a", content_of(1))
        index.models = (ONE,)
        found = await find(place.site, "Ours", ban=place.swarm.ban)
        assert found.files[0].sha256 == "ab" * 32
        assert list(place.swarm.banned) == [fool]
        assert gone not in place.swarm.banned


def test_only_the_file_whose_digest_the_catalogue_has_is_taken_of_a_catalogue_model() -> None:
    entry = next(entry for entry in load().entries if entry.hub is not None and entry.sha256)
    right, more = ModelFile("a.gguf", 1, entry.sha256), ModelFile("b.gguf", 1, "ab" * 32)
    said = Manifest(entry.name, (right, more), projector=more)
    assert verifiable_part(said, entry) == Manifest(entry.name, (right,))
    assert verifiable_part(said, entry.hub) == verifiable_part(said, None) == said
