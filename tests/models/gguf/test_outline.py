"""Estimated shapes of catalogue models, against real headers."""

from __future__ import annotations

import pytest

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import forecast
from meshllm.models.catalog.catalog import load
from meshllm.models.gguf.outline import outline, projector_estimate


@pytest.mark.parametrize("entry", load().entries, ids=lambda entry: entry.name)
def test_every_catalog_entry_has_a_plausible_outline(entry) -> None:  # type: ignore[no-untyped-def]
    shape = outline(entry)
    assert shape.weights == entry.size
    assert bool(shape.expert_weights) is not entry.dense
    told = forecast(shape, ContextSize(4096, 1))
    assert told.total > entry.size
    assert told.compute < 2 * 10**9
    # The engine keeps windows in steps of 256 tokens.
    assert sum(told.cache) == pytest.approx(entry.cache_bytes(4096), rel=0.15, abs=1)


def test_outline_widths_are_close_to_real_ones() -> None:
    """Qwen3-8B is 4096 wide with an inner part of 12288, gpt-oss-120b 2880 wide."""
    entry = load().get("Qwen3-8B")
    assert entry is not None
    shape = outline(entry)
    assert 3500 < shape.width < 4700
    assert 11_000 < shape.inner < 17_000


def test_outline_of_a_vision_model_includes_the_projector() -> None:
    for entry in load().entries:
        assert bool(projector_estimate(entry)) is entry.vision
