"""`scripts/bench start`: the time of a start, and memory and CPU of an idle daemon."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from . import engine, report
from .children import Child, free_port, listening
from .native import HERE, BenchError
from .targets import MESH_LLM

WRAPPER = HERE.parent / "mesh-llm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to watch the idle daemon (default 30)")
    parser.add_argument("--model", default=engine.MODEL, help=f"whose readiness to time (default {engine.MODEL})")
    parser.add_argument("--no-model", action="store_true", help="leave the model out")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 when something could not be started."""
    measured: dict[str, float | None] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch_name:
        scratch = Path(scratch_name)
        measured["help_s"] = _seconds_of([str(MESH_LLM), "--help"], 10)
        measured["help_by_script_s"] = _seconds_of([str(WRAPPER), "--help"], 10)
        try:
            _start_to_listening(scratch, 0)
            measured["listening_s"], measured["idle_rss_mb"], measured["idle_cpu_percent"] = _start_to_listening(
                scratch, options.seconds
            )
            if not options.no_model:
                measured["model_ready_s"] = _start_to_model(scratch, options.model)
        except BenchError as error:
            notes.append(str(error))
    report.progress("")
    bars = [
        report.bar("mesh-llm --help, s", measured.get("help_s"), 0.3, at_most=True),
        report.bar("resident memory serving nothing, MB", measured.get("idle_rss_mb"), 80, at_most=True),
        report.bar("CPU serving nothing, %", measured.get("idle_cpu_percent"), 0.5, at_most=True),
    ]
    if options.json:
        print(report.as_json("start", bars, measured=measured, notes=notes))
    else:
        report.show("start", ["", "measured"], _rows(measured, options), bars, notes)
    return int(bool(notes))


def _seconds_of(command: list[str], times: int) -> float:
    """Median seconds of a command that must succeed; one run before warms the caches."""
    taken = []
    for _ in range(times + 1):
        before = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        taken.append(time.perf_counter() - before)
        if result.returncode:
            raise BenchError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return median(taken[1:])


def _start_to_listening(scratch: Path, idle_seconds: float) -> tuple[float, float, float]:
    """Seconds from start to an accepted connection on the API port; then resident MB and CPU % while idle."""
    port, console = free_port(), free_port()
    command = [str(MESH_LLM), "--port", str(port), "--console", str(console)]
    with Child("mesh-llm", command, scratch, {"MESH_LLM_HOME": str(scratch / "home")}) as child:
        child.wait_for("listening API port", lambda: listening(port), every=0.002)
        taken = time.monotonic() - child.started
        if not idle_seconds:
            return taken, 0.0, 0.0
        report.progress(f"watching the idle daemon for {idle_seconds:.0f} s ...")
        time.sleep(3)  # what a start still does in the background is not idleness
        before, began = child.cpu_seconds(), time.monotonic()
        time.sleep(idle_seconds)
        used = (child.cpu_seconds() - before) / (time.monotonic() - began) * 100
        return taken, child.resident_bytes() / 1e6, used


def _start_to_model(scratch: Path, model: str) -> float:
    """Seconds from start to the first answered chat request, with the engine built and the model at hand."""
    for _ in range(2):  # the first one may have to build or fetch
        with ExitStack() as stack:
            child, _, _ = engine.start_with_model(stack, scratch, model)
            taken = time.monotonic() - child.started
    return taken


def _rows(measured: dict[str, float | None], options: argparse.Namespace) -> list[list[str]]:
    captions = {
        "help_s": "mesh-llm --help, s",
        "help_by_script_s": "scripts/mesh-llm --help, s",
        "listening_s": "second start: API port listening after, s",
        "idle_rss_mb": "serving nothing: resident memory, MB",
        "idle_cpu_percent": f"serving nothing: CPU over {options.seconds:.0f} s, %",
        "model_ready_s": f"start to the first answer of {options.model}, s",
    }
    return [[text, f"{value:.3f}"] for key, text in captions.items() if (value := measured.get(key)) is not None]
