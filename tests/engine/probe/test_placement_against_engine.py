"""Layers are placed as planned, with RPC servers in place of accelerators and various amounts of free memory."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import MICRO_BATCH
from meshllm.core.memory.layer_placement import (
    AcceleratorBudget,
    FitVerdict,
    LayerPlacement,
    MemoryBudget,
    PlacementNeed,
    PlacementTrial,
    choose,
)
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.probe import bindings
from meshllm.engine.processes.llama_server import PROCESSOR_BATCH, ServerPlan, arguments
from meshllm.models.gguf.header import read_header
from scripts.benchmarks.allocations import MIB, measure
from scripts.benchmarks.children import Child, free_port
from tests import engine_shapes

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SIZE = ContextSize(2048, 2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    found = builder.find()
    if found is None:
        pytest.skip("the engine is not built (mesh-llm engine build)")
    return found


@pytest.fixture
def workers(engine: Engine, tmp_path: Path) -> Iterator[list[str]]:
    """Endpoints of two RPC servers; each is a device for the engine."""
    program = engine.server.with_name("ggml-rpc-server")
    if not program.exists():
        pytest.skip("the engine was built without its RPC server")
    with ExitStack() as stack:
        ports = [free_port(), free_port()]
        for port in ports:
            child = stack.enter_context(Child(f"rpc-{port}", [str(program), "-p", str(port)], tmp_path))
            child.wait_for("listening RPC server", lambda port=port: _listens(port))
        yield [f"127.0.0.1:{port}" for port in ports]


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


async def fitted(
    engine: Engine, path: Path, room: MemoryBudget, workers: list[str], size: ContextSize
) -> LayerPlacement:
    search = choose(read_header(path).shape, [size], room)
    trial = next(search)
    try:
        while True:
            trial = search.send(await asked(engine, path, room, trial, workers))
    except StopIteration as end:
        found: LayerPlacement = end.value
        return found


def names(room: MemoryBudget, trial: PlacementTrial) -> list[str]:
    return [given.name for given, count in zip(room.accelerators, trial.layers, strict=True) if count]


async def asked(
    engine: Engine, path: Path, room: MemoryBudget, trial: PlacementTrial, workers: list[str]
) -> PlacementNeed:
    told = await bindings.memory_need(
        engine,
        path,
        context_size=trial.size.context_length * trial.size.slots,
        parallel=trial.size.slots,
        gpu_layers=sum(trial.layers),
        devices=names(room, trial),
        split=[count for count in trial.layers if count],
        experts_aside=trial.experts_aside,
        micro_batch=MICRO_BATCH if names(room, trial) else PROCESSOR_BATCH,
        rpc=workers,
    )
    by_device = told.by_device()
    return PlacementNeed(
        by_device["CPU"], told.mapped, tuple(by_device.get(given.name, 0) for given in room.accelerators)
    )


async def check(
    engine: Engine, path: Path, room: MemoryBudget, workers: list[str], folder: Path, size: ContextSize = SIZE
) -> LayerPlacement:
    """Plan the model, start it, and compare the planned bytes per device with the engine's allocations."""
    found = await fitted(engine, path, room, workers, size)
    assert found.verdict is FitVerdict.FITS
    trial = found.trial
    plan = ServerPlan(
        "m", path, size.context_length, size.slots, devices=tuple(names(room, trial)),
        layers=tuple(count for count in trial.layers if count), experts_aside=trial.experts_aside,
    )  # fmt: skip
    argv = [*arguments(engine.server, plan, folder / "s.sock"), "--load-mode", "none"]
    if plan.devices:  # the servers must be known before they are named
        argv[1:1] = ["--rpc", ",".join(workers)]
    real = measure(argv, folder)
    scores = real.buffers["output"]
    host = sum(size for place, size in real.places.items() if place.startswith("CPU")) - scores
    assert found.need.host / MIB == pytest.approx(host, rel=0.03)
    for given, need, endpoint in zip(room.accelerators, found.need.accelerators, workers, strict=True):
        there = sum(size for place, size in real.places.items() if endpoint in place)
        assert need / MIB == pytest.approx(there, rel=0.03)
        assert need <= given.room
    return found


def room(*sizes: int) -> MemoryBudget:
    return MemoryBudget(
        1 << 34, tuple(AcceleratorBudget(f"RPC{index}", size * MIB) for index, size in enumerate(sizes))
    )


async def test_placement_all_layers_on_one_device(engine: Engine, workers: list[str], tmp_path: Path) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", "qwen3")
    found = await check(engine, path, room(500, 100), workers, tmp_path)
    assert found.trial.layers == (5, 0)


async def test_placement_splits_layers_over_two_devices(engine: Engine, workers: list[str], tmp_path: Path) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", "qwen3")
    found = await check(engine, path, room(155, 155), workers, tmp_path, ContextSize(16384, 4))
    assert sum(found.trial.layers) == 5
    assert all(found.trial.layers)


async def test_placement_keeps_the_first_layer_on_the_cpu(engine: Engine, workers: list[str], tmp_path: Path) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", "gemma3")
    found = await check(engine, path, room(20, 20), workers, tmp_path)
    assert sum(found.trial.layers) == 6
    assert all(found.trial.layers)


async def test_placement_keeps_some_layers_on_the_cpu(engine: Engine, workers: list[str], tmp_path: Path) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", "llama")
    found = await check(engine, path, room(18, 1), workers, tmp_path)
    assert 0 < found.trial.layers[0] < 5
    assert found.trial.layers[1] == 0


async def test_placement_keeps_experts_on_the_cpu(engine: Engine, workers: list[str], tmp_path: Path) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", "qwen3moe")
    found = await check(engine, path, room(30, 1), workers, tmp_path)
    assert found.trial.layers == (5, 0)
    assert 0 < found.trial.experts_aside < 4


async def test_placement_without_room_on_devices_uses_the_cpu(
    engine: Engine, workers: list[str], tmp_path: Path
) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", "llama")
    found = await check(engine, path, room(1, 1), workers, tmp_path)
    assert found.trial.layers == (0, 0)
