"""What an idle node costs, against the version before models followed demand (`scripts/bench demand`).

A mesh of each version by turns: a node that began it, a standby with a model on its disk, and a
client. No engine is started: that of the earlier version may be another build.
"""

from __future__ import annotations

import subprocess
import tarfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from statistics import median

from . import report
from .children import Child, free_port
from .demand_nodes import TIMEOUT_S, Part, environment, folder_with_model, wait_for_peers
from .mesh_nodes import Node, Nodes
from .native import BenchError
from .targets import program_of

# The commit before the first change for demand.
BASELINE = "d7c62a9aace2e6515875c686bad7c4056cdb9734"
ROOT = Path(__file__).resolve().parents[2]
ROLES = ("founder", "standby", "client")
CPU_PERCENT = 0.2
MEMORY_MB = 2.0
# What a start still does in the background is not idleness.
SETTLE_S = 20.0

Figures = dict[str, tuple[float, float]]
"""CPU in percent of a core and resident MB, by role."""


def idle(nodes: Nodes, *, quick: bool) -> Part:
    """CPU and memory of idle nodes of both versions."""
    before = _checkout(nodes.scratch / "before")
    folder = folder_with_model(nodes.scratch)
    rounds, seconds = (1, 20.0) if quick else (3, 60.0)
    found: dict[str, list[Figures]] = {"before": [], "now": []}
    for number in range(rounds):
        for version in ("before", "now") if number % 2 else ("now", "before"):
            report.progress(f"idle: round {number + 1} of {rounds}, {version}")
            with ExitStack() as stack:
                checkout = before if version == "before" else ROOT
                mesh = _mesh(nodes, stack, folder, checkout)
                found[version].append(_watch(mesh, seconds))
    rows, cpu, memory = [], [], []
    for role in ROLES:
        was, now = (_median(found[version], role) for version in ("before", "now"))
        cpu.append(now[0] - was[0])
        memory.append(now[1] - was[1])
        rows.append([f"idle {role}: CPU, before and now", f"{was[0]:.2f} %", f"{now[0]:.2f} %"])
        rows.append([f"idle {role}: memory, before and now", f"{was[1]:.1f} MB", f"{now[1]:.1f} MB"])
    bars = [
        report.bar("idle: CPU above before, % of a core (worst role)", max(cpu), CPU_PERCENT, at_most=True),
        report.bar("idle: memory above before, MB (worst role)", max(memory), MEMORY_MB, at_most=True),
    ]
    note = f"idle: before: commit {BASELINE[:7]}; medians of {rounds} rounds of {seconds:.0f} s by turns"
    return Part(rows, bars, [note], {"rounds": found, "baseline": BASELINE})


def _checkout(folder: Path) -> Path:
    """The tree of the earlier version. Raises BenchError where this clone does not have it."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", BASELINE, "meshllm", "llama.cpp"], capture_output=True, check=False
    )
    if done.returncode:
        raise BenchError(f"commit {BASELINE[:7]} is not in this clone: git fetch --unshallow brings it")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _mesh(nodes: Nodes, stack: ExitStack, folder: Path, checkout: Path) -> dict[str, Node]:
    """An idle node of each role."""
    founder = _start(nodes, stack, "founder", checkout, (), folder.parent / "no-models")
    founder.child.wait_for("mesh", lambda: founder.status()["mesh"], TIMEOUT_S)
    invite = f"@{nodes.invite(founder)}"
    standby = _start(nodes, stack, "standby", checkout, ("--join", invite), folder)
    client = _start(nodes, stack, "client", checkout, ("--client", "--join", invite), folder.parent / "no-models")
    wait_for_peers(founder, 1)
    wait_for_peers(client, 1)
    return {"founder": founder, "standby": standby, "client": client}


def _start(nodes: Nodes, stack: ExitStack, name: str, checkout: Path, options: Sequence[str], models: Path) -> Node:
    port, console, home = free_port(), free_port(), nodes.scratch / f"{name}-{time.monotonic_ns()}"
    words = [*program_of(checkout), *options, "--port", str(port), "--console", str(console)]
    # The baseline is older than --node-name.
    words += ["--node-name" if checkout == ROOT else "--name", name]
    around = {**environment(models), "PYTHONPATH": str(checkout), "MESH_LLM_HOME": str(home)}
    # No engine is found, and none can be built.
    around["MESH_LLM_CACHE"] = str(nodes.scratch / "no-cache")
    child = stack.enter_context(Child(name, words, nodes.scratch, around))
    return Node(name, child, port, console, home)


def _watch(mesh: dict[str, Node], seconds: float) -> Figures:
    time.sleep(SETTLE_S)
    before = {role: node.child.cpu_seconds() for role, node in mesh.items()}
    began = time.monotonic()
    time.sleep(seconds)
    taken = time.monotonic() - began
    return {
        role: ((node.child.cpu_seconds() - before[role]) / taken * 100, node.child.resident_bytes() / 1e6)
        for role, node in mesh.items()
    }


def _median(found: list[Figures], role: str) -> tuple[float, float]:
    return median(one[role][0] for one in found), median(one[role][1] for one in found)
