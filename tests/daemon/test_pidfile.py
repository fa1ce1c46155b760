"""The lock on a home, and the file that tells other commands which process holds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from meshllm.daemon import pidfile
from meshllm.daemon.pidfile import HomeLock
from meshllm.errors import EnvironmentFailure, NotRunning, UsageError


def test_home_lock_admits_one_daemon(tmp_path: Path) -> None:
    claim = HomeLock(tmp_path)
    claim.announce(1, 2)
    found = pidfile.read(tmp_path)
    assert found is not None
    assert (found.pid, found.port, found.console) == (os.getpid(), 1, 2)
    with pytest.raises(UsageError, match="MESH_LLM_HOME"):
        HomeLock(tmp_path)
    claim.release()
    assert pidfile.read(tmp_path) is None
    HomeLock(tmp_path).release()


def test_home_lock_refuses_an_unusable_home(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for home in (file, file / "below"):
        with pytest.raises(UsageError, match=r"cannot be used: .*set MESH_LLM_HOME"):
            HomeLock(home)


@pytest.mark.parametrize(
    "note",
    ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "started": 0, "port": 1, "console": 2}'],
)
def test_read_ignores_a_damaged_pid_file(tmp_path: Path, note: str) -> None:
    (tmp_path / pidfile.PID_FILE).write_text(note)
    assert pidfile.read(tmp_path) is None
    with pytest.raises(NotRunning):
        pidfile.stop(tmp_path, within=1)


def test_read_ignores_a_pid_used_by_another_process(tmp_path: Path) -> None:
    told = {"pid": os.getpid(), "started": 1.0, "port": 1, "console": 2}
    (tmp_path / pidfile.PID_FILE).write_text(json.dumps(told))
    assert pidfile.read(tmp_path) is None


def test_announce_reports_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    (tmp_path / pidfile.PID_FILE).mkdir()
    with pytest.raises(EnvironmentFailure, match=r"daemon\.json cannot be written") as caught:
        lock.announce(1, 2)
    assert caught.value.advice
    lock.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own a folder as another user")
def test_home_of_another_user_is_refused(tmp_path: Path) -> None:
    """That user could replace the keys."""
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(UsageError, match="belongs to another user"):
        HomeLock(tmp_path)
