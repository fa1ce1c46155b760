"""Output of children: lines of any shape, rotation, and log files that cannot be written."""

from __future__ import annotations

import logging
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshllm.engine.processes.child_log import ChildLog, LineSplitter, escape_control_characters


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_line_splitter_gives_the_same_lines_for_any_chunks(size: int) -> None:
    data = "one\n\n  two \r\nthr\N{LATIN SMALL LETTER E WITH ACUTE}e\nrest".encode()
    splitter, lines = LineSplitter(), []
    for start in range(0, len(data), size):
        lines += splitter.feed(data[start : start + size])
    assert lines == ["one", "", "  two", "thr\N{LATIN SMALL LETTER E WITH ACUTE}e"]
    assert splitter.finish() == ["rest"]
    assert splitter.finish() == []


def test_line_splitter_cuts_long_lines_and_keeps_their_beginning() -> None:
    splitter = LineSplitter(20)
    lines = [line for _ in range(1000) for line in splitter.feed(b"0123456789")]
    lines += splitter.feed(b"\n" + b"y" * 20 + b"\n" + b"\x00" * 20 + b"\n")
    assert lines == ["012345678 [line cut]", "y" * 20, "\\x00\\x00\\ [line cut]"]


def test_control_characters_are_escaped() -> None:
    assert escape_control_characters("a\tb\x1b[2J\u202e\x9b") == "a\tb\\x1b[2J\\u202e\\x9b"


def test_child_log_rotates_and_bounds_its_total_size(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "x.log"
    with ChildLog(path, 1000) as log:
        for number in range(200):
            log.write([f"line {number:04}"] * 5)
    old = tmp_path / "logs" / "x.old.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert old.stat().st_size + path.stat().st_size <= 2 * 1000 + 2 * 50
    assert path.read_text().endswith("line 0199\n")
    with ChildLog(path, 1000) as log:  # a file that is full already is rotated by the first write of the next process
        log.write(["x" * 1000])
    with ChildLog(path, 1000) as log:
        log.write(["next"])
    assert path.read_text() == "next\n"


def test_child_log_of_two_writers_is_rotated_once(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with ChildLog(path, 100) as one, ChildLog(path, 100) as other:
        other.write(["first"])
        one.write(["y" * 200])
        one.write(["after"])
        other.write(["also after"])
    assert path.read_text() == "after\nalso after\n"
    assert path.with_suffix(".old.log").read_text().startswith("first\n")


def test_child_log_drops_and_counts_lines_while_the_file_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.log"
    path.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING), ChildLog(path) as log:
        log.write(["one", "two"])
        log.write(["three"])
        assert log.dropped == 3
        path.unlink()
        log.write(["four"])
        assert log.dropped == 0
    assert path.read_text() == "[3 lines were dropped: this file could not be written]\nfour\n"
    assert [record.message.partition(" ")[0] for record in caplog.records] == ["cannot", str(path)]


def test_child_log_limits_warnings_of_a_disk_that_is_full_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = tmp_path / "x.log", 0.0
    with caplog.at_level(logging.WARNING), ChildLog(path, clock=lambda: now) as log:
        for _ in range(10):
            path.unlink(missing_ok=True)
            path.symlink_to("/dev/full")
            log.close()
            log.write(["lost"])
            path.unlink()
            log.write(["kept"])
            now += 7.0
    messages = [record.message for record in caplog.records]
    assert sum(message.startswith("cannot write") for message in messages) == 2, "at 0 and at 63 seconds"
    assert len(messages) == 4


def test_child_log_survives_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with ChildLog(tmp_path / "file" / "logs" / "x.log") as log:
        log.write(["one"])
        assert log.dropped == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_child_log_goes_on_once_a_full_disk_has_space_again(small_disk: Path) -> None:
    path, ballast = small_disk / "x.log", small_disk / "ballast"
    ballast.write_bytes(bytes(100 << 10))
    with ChildLog(path) as log:
        for number in range(1000):
            log.write([f"{number:04} " + "z" * 95])
        assert log.dropped > 500
        ballast.unlink()
        log.write(["space again"])
    lines = path.read_text().splitlines()
    assert lines[-2].endswith("lines were dropped: this file could not be written]")
    assert lines[-1] == "space again"
    assert all(len(line) == 100 for line in lines[:-3]), "the last line before may be cut"
