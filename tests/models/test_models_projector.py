"""What a projector takes of memory at most, by its header."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.errors import InvalidModelFile
from meshllm.models.gguf.projector import MOST_PATCHES, projector_bytes
from tests import engine_samples


def test_the_file_and_what_a_picture_takes(tmp_path: Path) -> None:
    path = engine_samples.projector(tmp_path / "mmproj.gguf", width=64, hidden=128)
    assert projector_bytes(path) == path.stat().st_size + MOST_PATCHES * 4 * (2 * 128 + 4 * 64)


def test_larger_pictures_take_more(tmp_path: Path) -> None:
    pixels = 4 * MOST_PATCHES * 16 * 16
    path = engine_samples.projector(tmp_path / "mmproj.gguf", patch=16, most_pixels=pixels)
    assert projector_bytes(path) == path.stat().st_size + 4 * MOST_PATCHES * 4 * (2 * 128 + 4 * 64)


def test_what_is_no_projector_takes_what_it_weighs(tmp_path: Path) -> None:
    path = engine_samples.embedder(tmp_path / "model.gguf")
    assert projector_bytes(path) == path.stat().st_size


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "mmproj.gguf"
    bad.write_bytes(b"GGUF nonsense" * 9)
    with pytest.raises(InvalidModelFile, match=r"mmproj\.gguf"):
        projector_bytes(bad)
