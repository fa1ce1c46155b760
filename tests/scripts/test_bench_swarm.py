"""`scripts/bench swarm` at its smallest: what needs no engine is measured, over lanes, and nothing is left."""

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


def test_the_swarm_is_measured_and_nothing_is_left_behind() -> None:
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
