"""`scripts/bench memory`: predicted memory of models against what the engine allocates and then uses.

Two predictions: the engine's own computation without loading the model (which mesh-llm uses), and the estimate from the
header. Small models of real architectures are started; for large ones, outlines are compared with the engine's
computation.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from meshllm import paths
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import forecast, process_bytes
from meshllm.engine.build import builder
from meshllm.engine.build.builder import Engine
from meshllm.engine.probe import bindings
from meshllm.engine.processes.llama_server import ServerPlan, arguments
from meshllm.models.gguf.header import read_header
from tests import engine_shapes

from . import report
from .allocations import MIB, measure
from .native import BenchError

BATCH = 1024  # tokens of a prompt: two full batches
SIZES = (ContextSize(4096, 1), ContextSize(2048, 4))


@dataclass(frozen=True)
class Row:
    """MiB, and ratios of what was said to what is. `own` is memory that is not mapped from a file."""

    model: str
    size: str
    allocated: float
    said: float
    forecast: float
    own: float
    own_said: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--model", type=Path, help="a GGUF file to measure too; by default SmolLM2, if it is here")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print; 1 where a prediction was off by more than 3 %."""
    engine = builder.find()
    if engine is None:
        raise BenchError("the engine is not built; `mesh-llm engine build` builds it")
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
        rows, outlines = asyncio.run(_measure(engine, Path(scratch), options.model))
    worst = max(abs(row.said / row.allocated - 1) for row in rows)
    guessed = max(abs(ratio - 1) for _, _, ratio in outlines)
    bars = [
        report.bar("worst prediction, off by", worst, 0.03, at_most=True, shape="{:.4f}"),
        report.bar("worst forecast of a real model, off by", guessed, 0.03, at_most=True, shape="{:.4f}"),
    ]
    if options.json:
        print(report.as_json("memory", bars, models=[asdict(row) for row in rows], outlines=outlines))
        return int(worst > 0.03)
    table = [
        [
            row.model, row.size, f"{row.allocated:.2f}", f"{row.said / row.allocated:.4f}",
            f"{row.forecast / row.allocated:.3f}", f"{row.own:.1f}", f"{row.own_said:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    headings = ["", "size", "allocated, MiB", "said", "forecast", "in memory after work", "said"]
    report.show("memory: buffers of a real llama-server, against predictions", headings, table, bars, [])
    far = [[name, f"{told / 1e9:.1f} GB", f"{ratio:.4f}"] for name, told, ratio in outlines]
    report.show("outlines of real models, 16 bits, 4 x 32768 tokens", ["", "engine's word", "forecast"], far, [], [])
    return int(worst > 0.03)


async def _measure(engine: Engine, scratch: Path, model: Path | None) -> tuple[list[Row], list[tuple[str, int, float]]]:
    chosen = [model] if model else sorted(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))[:1]
    files = {
        name: engine_shapes.write(scratch / f"{name.replace(' ', '-')}.gguf", name) for name in engine_shapes.SAMPLES
    }
    rows = []
    for name, path in {**files, **{path.stem: path for path in chosen}}.items():
        for size in SIZES:
            report.progress(f"{name}, {size.slots} x {size.context_length}")
            rows.append(await _row(engine, scratch, name, path, size))
    outlines = []
    for name in engine_shapes.OUTLINES:
        report.progress(name)
        size = ContextSize(32768, 4)
        path = engine_shapes.outline(scratch / "outline.gguf", name)
        told = await bindings.memory_need(
            engine, path, context_size=size.context_length * size.slots, parallel=size.slots
        )
        outlines.append((name, told.total, _buffers(path, size) / told.total))
        path.unlink()
    report.progress("")
    return rows, outlines


async def _row(engine: Engine, scratch: Path, name: str, path: Path, size: ContextSize) -> Row:
    tokens = size.context_length * size.slots
    told = await bindings.memory_need(engine, path, context_size=tokens, parallel=size.slots)
    argv = arguments(engine.server, ServerPlan("m", path, size.context_length, size.slots), scratch / "s.sock")
    # Of a file that is mapped, the engine's log counts all between the first and the last byte in use.
    real = measure([*argv, "--load-mode", "none"], scratch)
    used = measure(argv, scratch, tokens=BATCH, slots=size.slots, path="/completion")
    own = told.total - told.mapped + process_bytes(read_header(path).vocabulary_size)
    return Row(
        model=name,
        size=f"{size.slots} x {size.context_length}",
        allocated=sum(real.buffers.values()) - real.buffers["output"],
        said=told.total / MIB,
        forecast=_buffers(path, size) / MIB,
        own=used.worked[1],
        own_said=own / MIB,
    )


def _buffers(path: Path, size: ContextSize) -> int:
    said = forecast(read_header(path).shape, size)
    return said.total - said.scores - said.process
