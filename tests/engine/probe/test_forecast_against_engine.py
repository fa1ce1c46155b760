"""The memory estimate from a header is near the engine's computation, for small models and outlines of real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import MemoryEstimate, forecast
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.probe import bindings
from meshllm.models.gguf.header import read_header
from tests import engine_shapes

pytestmark = pytest.mark.engine

SIZES = [ContextSize(4096, 1), ContextSize(2048, 4), ContextSize(32768, 2)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = builder.find()
    if found is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    return found


async def both(engine: Engine, path: Path, size: ContextSize) -> tuple[MemoryEstimate, bindings.MemoryNeed]:
    said = forecast(read_header(path).shape, size)
    tokens = size.context_length * size.slots
    return said, await bindings.memory_need(engine, path, context_size=tokens, parallel=size.slots)


@pytest.mark.parametrize("name", engine_shapes.SAMPLES)
async def test_forecast_of_toy_models_is_near_the_memory_need(engine: Engine, tmp_path: Path, name: str) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", name)
    repacked = engine_shapes.SAMPLES[name].quantized
    for size in SIZES:
        said, told = await both(engine, path, size)
        assert sum(said.cache) == told.context
        assert repacked or sum(said.weights) + said.rest == pytest.approx(told.model, rel=1e-4)
        assert said.compute == pytest.approx(told.compute, rel=0.15)
        buffers = sum(said.weights) + said.rest + sum(said.cache) + said.compute
        assert buffers == pytest.approx(told.total, rel=0.035)
        assert said.total == buffers + said.scores + said.process


@pytest.mark.parametrize("name", engine_shapes.OUTLINES)
async def test_forecast_of_real_model_outlines_is_near_the_memory_need(
    engine: Engine, tmp_path: Path, name: str
) -> None:
    path = engine_shapes.outline(tmp_path / "m.gguf", name)
    for size in SIZES:
        said, told = await both(engine, path, size)
        assert sum(said.cache) == told.context
        assert said.compute == pytest.approx(told.compute, rel=0.1)
        buffers = sum(said.weights) + said.rest + sum(said.cache) + said.compute
        assert buffers == pytest.approx(told.total, rel=0.005)
