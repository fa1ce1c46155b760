"""Damaged files in the store: they are no models, and are named with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.daemon.settings import Settings
from meshllm.daemon.start_wishes import find_model, find_models
from meshllm.errors import DamagedModelFile, UnknownModel
from meshllm.models.library import scan
from meshllm.models.library.store import Store
from tests import engine_samples


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An own model folder, with a sound model."""
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))
    engine_samples.model_without_needed_tensors(tmp_path / "sound.gguf")
    made = Store(tmp_path)
    made.prepare()
    return made


def damaged(store: Store, name: str, kept: int) -> Path:
    """A model of which the first `kept` bytes are left; negative: all but so many."""
    path = engine_samples.model_without_needed_tensors(store.folder / name)
    path.write_bytes(path.read_bytes()[:kept])
    return path


@pytest.mark.parametrize("kept", [-1, 100, 4, 0])
def test_damaged_file_is_no_model_and_is_named_at_each_scan(store: Store, kept: int) -> None:
    path = damaged(store, "toy.Q4_1.gguf", kept)
    for _ in range(2):  # from the file, then from the cache
        found = scan.look(store)
        assert list(found.models) == ["sound"]
        ((name, where, reason),) = [(each.name, each.path, each.reason) for each in found.damaged]
        assert (name, where) == ("toy.Q4_1", path)
        assert reason
        assert str(store.folder) not in found.damaged[0].text
    engine_samples.model_without_needed_tensors(path)
    assert scan.look(store).damaged == ()


@pytest.mark.parametrize("text", ["toy.Q4_1", "TOY", "toy:q4_1"])
def test_name_of_a_damaged_file_is_refused_with_what_to_do(store: Store, text: str) -> None:
    path = damaged(store, "toy.Q4_1.gguf", 100)
    with pytest.raises(DamagedModelFile, match=f"{path} is damaged") as caught:
        find_model(text)
    assert "download the model again" in caught.value.advice
    assert "'mesh-llm models remove toy.Q4_1' deletes it" in caught.value.advice
    with pytest.raises(DamagedModelFile):  # the mesh is not asked
        find_models(Settings(store.folder / "home", models=(text,)))


def test_files_of_other_kinds_are_not_damaged(store: Store) -> None:
    (store.folder / "notes.txt").write_text("x")
    assert scan.look(store).damaged == ()
    with pytest.raises(UnknownModel):
        find_model("no such model")


def test_damaged_copy_of_a_sound_model_does_not_hide_it(store: Store) -> None:
    (store.folder / "copy").mkdir()
    damaged(store, "copy/sound.gguf", 100)
    found = scan.look(store)
    assert list(found.models) == ["sound"]
    assert found.damaged == ()
