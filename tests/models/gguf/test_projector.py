"""Memory use of a vision projector, from its header."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.errors import InvalidModelFile
from meshllm.models.gguf.projector import MOST_PATCHES, projector_bytes
from tests import engine_samples


def test_projector_bytes_adds_file_and_image_memory(tmp_path: Path) -> None:
    path = engine_samples.projector(tmp_path / "mmproj.gguf", width=64, hidden=128)
    assert projector_bytes(path) == path.stat().st_size + MOST_PATCHES * 4 * (2 * 128 + 4 * 64)


def test_projector_bytes_grows_with_the_image_size(tmp_path: Path) -> None:
    pixels = 4 * MOST_PATCHES * 16 * 16
    path = engine_samples.projector(tmp_path / "mmproj.gguf", patch=16, most_pixels=pixels)
    assert projector_bytes(path) == path.stat().st_size + 4 * MOST_PATCHES * 4 * (2 * 128 + 4 * 64)


def test_projector_bytes_of_another_file_is_its_size(tmp_path: Path) -> None:
    path = engine_samples.embedder(tmp_path / "model.gguf")
    assert projector_bytes(path) == path.stat().st_size


def test_projector_bytes_rejects_a_damaged_file(tmp_path: Path) -> None:
    bad = tmp_path / "mmproj.gguf"
    bad.write_bytes(b"GGUF nonsense" * 9)
    with pytest.raises(InvalidModelFile, match=r"mmproj\.gguf"):
        projector_bytes(bad)
