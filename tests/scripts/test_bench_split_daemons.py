"""`scripts/bench split`: a minimal run with two daemons, and two killed workers."""

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


def test_bench_split_measures_and_cleans_up() -> None:
    if builder.find() is None or not any(paths.models().glob("SmolLM2-135M-Instruct*.gguf")):
        pytest.skip("the engine or the model is not here (mesh-llm --model SmolLM2-135M-Instruct)")
    options = [
        "--quick",
        "--rounds",
        "1",
        "--tokens",
        "8",
        "--kills",
        "2",
        "--only",
        "near",
        "--only",
        "kill",
        "--json",
    ]
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        # Whatever the run starts inherits this, by which it is known again.
        environment = {**os.environ, "TMPDIR": name}
        result = subprocess.run(
            [sys.executable, "-m", "scripts.benchmarks", "split", *options],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        told = json.loads(result.stdout)
        ours = told["measured"]["ways"]["2 nodes"]
        assert len(ours["decode_ms"]) == len(ours["prefill_ms"]) == 1
        assert sum(ours["layers"]) == 30
        assert ours["forecast_ms"] > 0
        assert ours["via"] == "lane"
        killed = told["measured"]["kill"]
        assert killed["errors"] + killed["answers"] == killed["recovered"] == 2
        assert killed["hangs"] == killed["cut"] == killed["orphans"] == 0
        assert {bar["name"] for bar in told["bars"]} >= {"bytes to the host per token", "2 workers killed: hangs"}
        left = [
            each.info["cmdline"]
            for each in psutil.process_iter(["cmdline", "environ"])
            if (each.info["environ"] or {}).get("TMPDIR") == name
        ]
        assert left == []
        assert list(Path(name).iterdir()) == []
