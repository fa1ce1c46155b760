"""`scripts/bench console`: a minimal run measures everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshllm.web.console.page_files import FOLDER
from tests.console.conftest import chromium

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.skipif(not (FOLDER / "index.html").exists(), reason="the console's page is not built: scripts/console")
def test_bench_console_measures_the_page() -> None:
    command = [sys.executable, "-m", "scripts.benchmarks", "console", "--rounds", "1", "--seconds", "1", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    measured = told["measured"]
    assert measured["script_kb"] > 10
    assert measured["paint_ms"] > 0
    assert measured["content_ms"] > 0
    for view in ("mesh", "nodes"):
        assert measured[f"{view}_changes"] >= 1
        assert measured[f"{view}_frame_p99_ms"] > 0
    assert all(bar["met"] is not None for bar in told["bars"])
