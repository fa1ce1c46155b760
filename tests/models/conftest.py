"""Fixtures of download tests: a store, a hub and a small model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, make_entry, running
from gguf_samples import write_sample
from platformdirs import user_cache_path

from meshllm.models.catalog.entry import CatalogEntry
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.manifest import HubSource
from meshllm.models.library.store import Store


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Removes settings, tokens and models of the user (except pip's cache); closes connections at the end."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    if "PIP_CACHE_DIR" not in os.environ:
        monkeypatch.setenv("PIP_CACHE_DIR", str(user_cache_path("pip", appauthor=False)))
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield
    from huggingface_hub import close_session

    close_session()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """A small valid GGUF file of about 200 kB."""
    return write_sample(tmp_path / "made.gguf", layers=16, tokens=50).read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def fake(content: bytes) -> Iterator[FakeHub]:
    with running(FakeHub(content)) as hub:
        yield hub


@pytest.fixture
def hub(fake: FakeHub) -> Hub:
    """A Hub for the fake server with long timeouts and short pauses."""
    return Hub(HubSettings(endpoint=fake.endpoint, decide_within=20.0, stall=20.0, pause=0.001))


@pytest.fixture
def entry(fake: FakeHub) -> CatalogEntry:
    """A model with the hub as its only source."""
    return make_entry(fake, HubSource(fake.repository, fake.revision, fake.path))
