"""The memory need of a model equals the allocations of a real llama-server, for every kind of memory use."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.core.memory.speculation import DraftSource, Speculation
from meshllm.core.snapshot import Purpose
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.probe import bindings
from meshllm.engine.processes.llama_server import PROCESSOR_BATCH, ServerPlan, arguments
from scripts.benchmarks.allocations import MIB, Allocated, measure
from tests import engine_samples, engine_shapes

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NEAR = 0.03
ROUNDING = 0.011  # MiB: the log has two decimals


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = builder.find()
    if found is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    return found


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def sample(folder: Path, name: str) -> Path:
    path = folder / f"{name.replace(' ', '-')}.gguf"
    return path if path.exists() else engine_shapes.write(path, name)


def near(said: int, allocated: float, buffers: int = 1) -> bool:
    return abs(said / MIB - allocated) <= max(NEAR * allocated, buffers * ROUNDING)


def check(need: bindings.MemoryNeed, real: Allocated) -> None:
    cache = real.buffers.get("KV", 0.0) + real.buffers.get("RS", 0.0)
    for said, allocated in (
        (need.model, real.buffers["model"]),
        (need.context, cache),
        (need.compute, real.buffers["compute"]),
        (need.total, real.buffers["model"] + cache + real.buffers["compute"]),
    ):
        assert near(said, allocated, 3), (need, real)


@pytest.mark.parametrize(("context", "slots"), [(4096, 1), (2048, 4)])
@pytest.mark.parametrize("name", engine_shapes.SAMPLES)
async def test_memory_need_equals_allocations_for_every_model_shape(
    engine: Engine, shapes: Path, tmp_path: Path, name: str, context: int, slots: int
) -> None:
    path = sample(shapes, name)
    need = await bindings.memory_need(
        engine, path, context_size=context * slots, parallel=slots, micro_batch=PROCESSOR_BATCH
    )
    plan = ServerPlan("m", path, context, slots)
    # Of a file that is mapped, the log counts all between the first and the last byte in use: not what is in use.
    options = ("--load-mode", "none") if engine_shapes.SAMPLES[name].quantized else ()
    check(need, measure([*arguments(engine.server, plan, tmp_path / "s.sock"), *options], tmp_path))


async def test_memory_need_includes_outputs_of_draft_tokens(engine: Engine, shapes: Path, tmp_path: Path) -> None:
    path, context, slots = sample(shapes, "qwen3"), 2048, 4
    speculation = Speculation(DraftSource.NGRAMS)
    need = await bindings.memory_need(
        engine,
        path,
        context_size=context * slots,
        parallel=slots,
        micro_batch=PROCESSOR_BATCH,
        draft_tokens=speculation.max_draft_tokens,
    )
    plain = await bindings.memory_need(
        engine, path, context_size=context * slots, parallel=slots, micro_batch=PROCESSOR_BATCH
    )
    assert need.compute > plain.compute
    plan = ServerPlan("m", path, context, slots, speculation=speculation)
    check(need, measure(arguments(engine.server, plan, tmp_path / "s.sock"), tmp_path))


async def test_memory_need_of_an_embedding_model(engine: Engine, tmp_path: Path) -> None:
    path = engine_samples.embedder(tmp_path / "e.gguf")
    size = engine_samples.CONTEXT
    need = await bindings.memory_need(
        engine, path, context_size=size * 2, parallel=2, micro_batch=size, embeddings=True, pooling="mean"
    )
    plan = ServerPlan("m", path, size, 2, purpose=Purpose.EMBED, pooling="mean", micro_batch=size)
    check(need, measure(arguments(engine.server, plan, tmp_path / "s.sock"), tmp_path))


async def test_memory_need_predicts_resident_memory(engine: Engine, shapes: Path, tmp_path: Path) -> None:
    path, context, slots = sample(shapes, "qwen3"), 8192, 4
    need = await bindings.memory_need(
        engine, path, context_size=context * slots, parallel=slots, micro_batch=PROCESSOR_BATCH
    )
    plan = ServerPlan("m", path, context, slots)
    real = measure(
        arguments(engine.server, plan, tmp_path / "s.sock"), tmp_path, tokens=1024, slots=slots, path="/completion"
    )
    own = (need.context + need.compute) / MIB
    assert own < real.worked[1] < own + 40, "all but the weights, which are mapped, and some of the program's own"
    assert real.worked[0] > need.model / MIB
