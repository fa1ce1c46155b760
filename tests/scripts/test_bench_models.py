"""`scripts/bench models`: an interrupted download and its repeated bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_bench_models_measures_an_interrupted_download() -> None:
    command = [sys.executable, "-m", "scripts.benchmarks", "models", "--quick", "--only", "download"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "10 and 10" in done.stdout
    assert "met  fetched twice in all" in done.stdout
