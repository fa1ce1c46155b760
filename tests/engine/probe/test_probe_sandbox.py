"""The child that reads a model's file for its memory runs in the sandbox: a hostile file gets no further than there."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm import paths
from meshllm.engine.build import builder
from meshllm.engine.probe import bindings
from meshllm.engine.sandbox.availability import available
from meshllm.engine.sandbox.policy import Sandboxing
from meshllm.errors import InvalidModelFile

pytestmark = pytest.mark.engine


async def test_probe_reads_the_model_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, box = builder.find(), Sandboxing(available())
    assert engine is not None
    if not box.available.cage:
        pytest.skip(f"no sandbox here: {box.available.problems}")
    link = tmp_path / "m.gguf"
    link.symlink_to(next(paths.models().glob("SmolLM2-135M-Instruct*.gguf")))
    inside = await bindings.memory_need(engine, link, context_size=512, sandboxing=box)
    assert inside == await bindings.memory_need(engine, link, context_size=512)
    monkeypatch.setattr(bindings, "_parts", lambda model: [])
    with pytest.raises(InvalidModelFile):
        await bindings.memory_need(engine, link, context_size=512, sandboxing=box)
