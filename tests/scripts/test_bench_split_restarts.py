"""`scripts/bench split-restarts`: one restart of two daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from meshllm import paths
from meshllm.engine.build import builder

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_bench_split_restarts_measures_and_cleans_up() -> None:
    if builder.find() is None or not any(paths.models().glob("SmolLM2-135M-Instruct*.gguf")):
        pytest.skip("the engine or the model is not here (mesh-llm --model SmolLM2-135M-Instruct)")
    with tempfile.TemporaryDirectory(prefix="sr-") as name:
        # Whatever the run starts inherits this, by which it is known again.
        environment = {**os.environ, "TMPDIR": name}
        result = subprocess.run(
            [sys.executable, "-m", "scripts.benchmarks", "split-restarts", "--restarts", "1", "--json"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        told = json.loads(result.stdout)
        (restart,) = told["restarts"]
        assert restart["status"] == "200", restart
        assert restart["served"] > 0
        assert {bar["name"] for bar in told["bars"]} >= {"answers that are errors"}
        left = [
            each.info["cmdline"]
            for each in psutil.process_iter(["cmdline", "environ"])
            if (each.info["environ"] or {}).get("TMPDIR") == name
        ]
        assert left == []
