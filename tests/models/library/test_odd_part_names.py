"""Parts of a split model whose names do not say so, or that were joined byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_samples import write_parts

from meshllm.errors import InvalidModelFile
from meshllm.models.library.local_model import from_path
from meshllm.models.library.store import Store


@pytest.mark.parametrize("number", [0, 1])
def test_renamed_part_is_refused_with_what_to_do(tmp_path: Path, number: int) -> None:
    part = write_parts(tmp_path / "made", "big", 2)[number].rename(tmp_path / "my-model.gguf")
    with pytest.raises(InvalidModelFile) as refused:
        from_path(part, Store(tmp_path))
    assert f"is part {number + 1} of 2 of a split model" in refused.value.message
    assert "-00001-of-00002.gguf" in refused.value.advice


def test_joined_parts_are_refused_with_what_to_do(tmp_path: Path) -> None:
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(part.read_bytes() for part in write_parts(tmp_path / "made", "big", 3)))
    with pytest.raises(InvalidModelFile) as refused:
        from_path(joined, Store(tmp_path))
    assert "llama-gguf-split --merge" in refused.value.advice


def test_parts_with_their_names_are_one_model(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "made", "big", 3)
    assert from_path(parts[0], Store(tmp_path)).files == tuple(parts)
