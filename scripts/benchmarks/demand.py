"""`scripts/bench demand`: real daemons, the real engine and SmolLM2: models that come and go with demand.

Parts: `killed` (kill -9 of the only host), `first-request` (a model on a standby's disk), `memory` (two models on one
node), `eviction` (20 models, memory for 3), `hot` (a standby joins a busy host), `idle` (against an earlier version).
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from meshllm.engine.build import builder

from . import demand_hosts, demand_hot, demand_idle, demand_memory, report
from .demand_nodes import Part
from .mesh_nodes import Nodes
from .native import BenchError

PARTS = {
    "killed": demand_hosts.killed,
    "first-request": demand_hosts.first_request,
    "memory": demand_memory.memory,
    "eviction": demand_memory.eviction,
    "hot": demand_hot.hot,
    "idle": demand_idle.idle,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part (repeatable)")
    parser.add_argument("--quick", action="store_true", help="short runs: less exact")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a bar is not met."""
    if builder.find() is None:
        raise BenchError("the engine is not built; `mesh-llm engine build` builds it")
    found: dict[str, Part] = {}
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch, ExitStack() as stack:
            found[name] = PARTS[name](Nodes(stack, Path(scratch)), quick=options.quick)
    report.progress("")
    bars = [bar for part in found.values() for bar in part.bars]
    if options.json:
        print(report.as_json("demand", bars, measured={name: part.figures for name, part in found.items()}))
    else:
        rows = [row for part in found.values() for row in part.rows]
        notes = [note for part in found.values() for note in part.notes]
        report.show("demand: SmolLM2-135M, real daemons", ["", "measured", ""], rows, bars, notes)
    return int(any(bar.met is False for bar in bars))
