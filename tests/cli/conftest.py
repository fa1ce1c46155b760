"""A machine that is as the tests of commands need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.models.library.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A model folder of its own, and a machine on which nobody else keeps models."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MESH_LLM_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path / "models"))
    return Store(tmp_path / "models")
