"""Atomic file writes: complete or not at all, with the requested permissions."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from meshllm.util.atomic_file import create_file, replace_file


@pytest.mark.parametrize("durable", [False, True])
def test_replace_file_replaces_the_content_and_leaves_no_scratch_file(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "old", durable=durable)
    replace_file(path, b"new", durable=durable)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [tmp_path / "state.json"]


def test_replace_file_keeps_the_old_content_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "state.json"]


def test_replace_file_sets_the_mode_of_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    replace_file(path, "new", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_create_file_leaves_an_existing_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    assert create_file(path, "first")
    assert not create_file(path, "second")
    assert path.read_text() == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "key.pem"]


def test_create_file_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "key.pem"
    assert create_file(path, "first")
    assert not create_file(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "key.pem"]
