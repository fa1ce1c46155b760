"""The registry of child processes: it kills leftovers of an earlier daemon, and nothing else."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshllm.engine.processes.child_registry import ChildRegistry, is_same_process

TIMEOUT = 120.0


def test_registry_kills_only_registered_processes_with_the_same_start_time(tmp_path: Path) -> None:
    registry = ChildRegistry(tmp_path / "children")
    left, stranger = (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0) for _ in range(2)
    )
    try:
        registry.add(left.pid, "left")
        registry.add(stranger.pid, "stranger")
        entry = tmp_path / "children" / f"{stranger.pid}.json"
        values = json.loads(entry.read_text())
        entry.write_text(json.dumps({**values, "started": values["started"] - 3600}))  # its pid was reused
        (tmp_path / "children" / "1.json").write_text("{not json")
        (tmp_path / "children" / "2.json").write_text('{"pid": 1, "started": 0, "name": "init"}')
        assert registry.end_leftovers() == ["left"]
        assert left.wait(TIMEOUT) == -signal.SIGKILL
        assert stranger.poll() is None
        assert list((tmp_path / "children").iterdir()) == []
    finally:
        for process in (left, stranger):
            process.kill()
            process.wait()
    assert not is_same_process(left.pid, values["started"])


def test_registry_skips_a_process_that_has_ended(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    ChildRegistry(tmp_path).add(done.pid, "ended")
    assert list(tmp_path.iterdir()) == []


def test_registry_logs_an_entry_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "children"
    folder.write_text("not a folder")
    registry = ChildRegistry(folder)
    with caplog.at_level(logging.WARNING):
        registry.add(os.getpid(), "self")
        registry.remove(os.getpid())
    assert "cannot register process" in caplog.text
