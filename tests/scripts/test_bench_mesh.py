"""`scripts/bench mesh`: a minimal run of the parts without the engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(
        not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler: the measuring tools are written in C"
    ),
    pytest.mark.slow,
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files; a short name keeps the sockets in it, so that they go with it."""
    with tempfile.TemporaryDirectory(prefix="mb-") as name:
        yield Path(name)


def marked(process: dict[str, Any], folder: str) -> bool:
    """Whether a process uses that folder for temporary files."""
    return (process["environ"] or {}).get("TMPDIR") == folder


def test_bench_mesh_measures_and_cleans_up(folder: Path) -> None:
    parts = [word for part in ("join", "added", "kill") for word in ("--only", part)]
    command = [sys.executable, "-m", "scripts.benchmarks", "mesh", "--quick", "--rounds", "1", "--no-model", "--json"]
    # Whatever the run starts inherits this, by which it is known again.
    environment = {**os.environ, "TMPDIR": str(folder)}
    result = subprocess.run([*command, *parts], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    measured = json.loads(result.stdout)["measured"]
    assert measured["failed"] == 0, measured["complaint"]
    assert measured["survived"] == 16
    assert set(measured["first_event_ms"]) == {"alone", "lanes", "quic"}
    assert set(measured["killed_s"]) == {"lanes", "quic"}
    for taken in measured["rounds_join"].values():
        assert all(seconds > 0 for seconds in taken)
    # A joiner cannot have answered before it listened.
    assert measured["joined_node_s"]["lanes"] < measured["join_node_s"]["lanes"]
    left = [each.info for each in psutil.process_iter(["cmdline", "environ"]) if marked(each.info, str(folder))]
    assert left == []
    assert list(folder.iterdir()) == []
