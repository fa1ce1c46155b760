"""`scripts/bench board`: minimal runs of its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("part", "options", "bars"),
    [("queries", ["--queries", "300"], 1), ("kills", ["--kills", "1"], 2), ("flood", ["--entries", "3000"], 2)],
)
def test_bench_board_measures_one_part(part: str, options: list[str], bars: int) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks", "board", "--only", part, "--json", *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert [bar["met"] for bar in found["bars"]] == [True] * bars
    assert found["measured"]
