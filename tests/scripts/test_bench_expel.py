"""`scripts/bench expel`: a minimal run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_bench_expel_measures_the_time_of_an_expulsion() -> None:
    command = [sys.executable, "-m", "scripts.benchmarks", "expel", "--nodes", "3", "--rounds", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert len(told["measured"]["expelled_s"]) == len(told["measured"]["statuses_s"]) == 1
    assert told["measured"]["expelled_s"][0] > 0
    assert "expelled member" in told["bars"][0]["name"]
