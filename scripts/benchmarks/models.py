"""`scripts/bench models`: all measurements about models in one run: downloads, memory, swarm, speculation.

Only downloads are measured here; the other parts are commands of their own with more options.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import memory, report, speculation, swarm
from .native import BenchError

INTERRUPTIONS = Path(__file__).resolve().parents[2] / "tests" / "models" / "interruptions.py"
PARTS = ("download", "memory", "swarm", "speculation")
SEEDS, QUICK_SEEDS = (1, 2, 3), (1,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--quick", action="store_true", help="short runs: less exact")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part (repeatable)")


def run(options: argparse.Namespace) -> int:
    """Measure and print, part by part; 1 where one of them says so."""
    parts = options.only or PARTS
    code = _downloads(QUICK_SEEDS if options.quick else SEEDS) if "download" in parts else 0
    quick = ["--quick"] if options.quick else []
    rounds = ["--rounds", "2"] if options.quick else []
    others: tuple[tuple[str, Any, list[str]], ...] = (
        ("memory", memory, []), ("swarm", swarm, quick), ("speculation", speculation, rounds),
    )  # fmt: skip
    for name, module, words in others:
        if name in parts:
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            code = max(code, module.run(parser.parse_args(words)))
    return code


def _downloads(seeds: tuple[int, ...]) -> int:
    """One file, interrupted twenty times while the hub misbehaves: is it right, and what was fetched twice?"""
    rows, part, worst = [], 4 << 20, 0
    for seed in seeds:
        report.progress(f"a download that is interrupted, seed {seed}")
        done = subprocess.run(
            [sys.executable, str(INTERRUPTIONS), "--seed", str(seed)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BenchError(f"the download with seed {seed} failed: {done.stderr.strip().splitlines()[-1:]}")
        figures = json.loads(done.stdout)
        worst = max(worst, figures["twice"])
        faults = ", ".join(f"{count} {kind}" for kind, count in figures["faults"].items() if count)
        rows.append(
            [
                str(seed),
                f"{figures['size'] / 1e6:.1f} MB",
                f"{figures['cancelled']} and {figures['killed']}",
                f"{figures['twice'] / 1e6:.2f} MB",
                faults,
            ]
        )
    report.progress("")
    bars = [report.bar("fetched twice in all, in parts of 4 MiB", worst / part, 1.0, at_most=True)]
    columns = ["seed", "file", "cancelled and killed", "fetched twice", "faults of the hub"]
    report.show("A download, interrupted", columns, rows, bars, ["each file was right in the end"])
    return 0
