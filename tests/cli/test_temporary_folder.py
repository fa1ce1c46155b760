"""A system without a writable temporary folder: a node makes one in its home."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from meshllm.cli import temporary_folder
from meshllm.net.identity import Identity


@pytest.fixture
def no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only root."""

    def none() -> str:
        if tempfile.tempdir is None:
            raise FileNotFoundError("No usable temporary directory found")
        return tempfile.tempdir

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("TMPDIR", "/nonexistent")


@pytest.mark.usefixtures("no_temporary_folder")
def test_home_has_the_temporary_folder_of_the_process_and_its_children(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert temporary_folder.ensure(home)
    assert tempfile.gettempdir() == str(home / "tmp")
    assert (home.stat().st_mode & 0o777, (home / "tmp").stat().st_mode & 0o777) == (0o700, 0o700)
    child = [sys.executable, "-c", "import tempfile; print(tempfile.gettempdir())"]
    told = subprocess.run(child, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(home / "tmp")


def test_temporary_folder_of_the_system_is_kept(tmp_path: Path) -> None:
    assert not temporary_folder.ensure(tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("no_temporary_folder")
def test_identity_needs_no_temporary_folder(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path).server_context()
    assert [path.name for path in tmp_path.iterdir()] == ["node-key"]


@pytest.mark.usefixtures("no_temporary_folder")
def test_home_that_cannot_be_used_either_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(OSError, match="home"):
        temporary_folder.ensure(tmp_path / "home")
