"""Downloads for another program of this machine, and for the console's page, which knows no folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.daemon.downloads import DownloadService
from meshllm.errors import UsageError
from meshllm.web.console.downloads import DownloadRequest
from tests import engine_samples


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the node's folder."""
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path))
    return engine_samples.model_without_needed_tensors(tmp_path / "mine.gguf")


async def test_request_without_a_folder_is_for_the_folder_of_the_node(tmp_path: Path) -> None:
    service = DownloadService(lambda: None)
    for folder in ("", str(tmp_path)):
        assert await service.download(DownloadRequest(name="mine", folder=folder), lambda event: None) == ("mine",)


async def test_request_with_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another model folder"):
        await DownloadService(lambda: None).download(
            DownloadRequest(name="mine", folder=str(tmp_path / "other")), lambda event: None
        )
