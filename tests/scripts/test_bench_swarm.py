"""`scripts/bench swarm`: a minimal run without the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_bench_swarm_measures_and_cleans_up() -> None:
    options = ["--quick", "--rounds", "1", "--megabytes", "9", "--disk", "--no-model", "--json"]
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        # Whatever the run starts inherits this, by which it is known again.
        environment = {**os.environ, "TMPDIR": name}
        result = subprocess.run(
            [sys.executable, "-m", "scripts.benchmarks", "swarm", *options],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        measured = json.loads(result.stdout)["measured"]
        (swarm,), (plain,) = measured["rounds_bulk"]["swarm"], measured["rounds_bulk"]["plain"]
        assert swarm["bytes"] == plain["bytes"] == 9 << 20
        assert swarm["banned"] == 0
        assert measured["bulk"]["ratio"] > 0
        left = [
            each.info["cmdline"]
            for each in psutil.process_iter(["cmdline", "environ"])
            if (each.info["environ"] or {}).get("TMPDIR") == name
        ]
        assert left == []
        assert list(Path(name).iterdir()) == []
