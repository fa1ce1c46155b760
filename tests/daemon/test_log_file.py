"""The daemon's log file: rotation, permissions, and a disk that does not take the lines."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshllm.daemon.audit_log import audit_path
from meshllm.daemon.log_file import FILES, LogFile, RotatingFile, engine_log, log_path, rotated
from meshllm.daemon.log_reader import LogTail


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, whose handlers are closed after the test."""
    found = logging.Logger("meshllm.test")
    yield found
    for handler in found.handlers:
        handler.close()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_rotating_file_keeps_a_bounded_number_of_bounded_files(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "daemon.log"
    file = RotatingFile(path, max_bytes=1000, files=3)
    for number in range(200):
        file.write(f"line {number:05} {'x' * 40}\n".encode())
    file.close()
    files = sorted(path.parent.iterdir())
    assert [found.name for found in files] == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    for found in files:
        assert found.stat().st_size <= 1000
        assert found.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert "line 00199" in text(path)
    lines = "".join(text(rotated(path, number)) for number in (2, 1, 0)).splitlines()
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], 200))


def test_rotating_file_continues_an_existing_file_and_makes_it_private(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    path.write_text("before\n")
    path.chmod(0o644)
    file = RotatingFile(path)
    file.write(b"after\n")
    file.close()
    assert text(path) == "before\nafter\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_rotating_file_reopens_a_removed_file(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    file = RotatingFile(path)
    file.write(b"one\n")
    path.unlink()
    file.check()
    file.write(b"two\n")
    file.close()
    assert text(path) == "two\n"


def test_rotating_file_follows_no_symbolic_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "daemon.log").symlink_to(other)
    with pytest.raises(OSError, match="symbolic"):
        RotatingFile(tmp_path / "daemon.log").write(b"x\n")
    assert text(other) == "mine"


def test_log_file_writes_records_off_the_callers_thread(tmp_path: Path, logger: logging.Logger) -> None:
    path = tmp_path / "daemon.log"
    handler = LogFile(RotatingFile(path))
    logger.addHandler(handler)
    logger.info("before the start")
    assert not path.exists()
    handler.start()
    logger.warning("after the %s", "start", extra={"fields": {"request_id": "req_1"}})
    handler.close()
    first, second = text(path).splitlines()
    assert first.endswith("INFO    meshllm.test: before the start")
    assert second.endswith("WARNING meshllm.test: after the start request_id=req_1")


class FullDisk(RotatingFile):
    """A file on a disk that is full until `space` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.space = threading.Event()
        self.tried = threading.Semaphore(0)

    def write(self, line: bytes) -> None:
        try:
            if not self.space.is_set():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(line)
        finally:
            self.tried.release()


def test_log_file_drops_and_counts_lines_while_the_disk_is_full(tmp_path: Path, logger: logging.Logger) -> None:
    path = tmp_path / "daemon.log"
    file = FullDisk(path)
    handler = LogFile(file, retry=0.0)
    handler.start()
    logger.addHandler(handler)
    for number in range(3):
        logger.info("lost %d", number)
        assert file.tried.acquire(timeout=30)
    file.space.set()
    logger.info("kept")
    logger.info("and this")
    handler.close()
    lines = text(path).splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        f"3 log lines were lost: {os.strerror(errno.ENOSPC)}",
        "kept",
        "and this",
    ]
    assert handler.lost == 3


def test_log_file_drops_lines_when_its_queue_is_full(tmp_path: Path, logger: logging.Logger) -> None:
    """Before the start nothing is written: what does not fit into the queue is counted."""
    handler = LogFile(RotatingFile(tmp_path / "daemon.log"), queue_lines=10)
    logger.addHandler(handler)
    for number in range(25):
        logger.info("line %d", number)
    assert handler.lost == 15
    handler.start()
    handler.close()
    lines = text(tmp_path / "daemon.log").splitlines()
    assert "15 log lines were lost: the queue of the log file is full" in lines[0]
    assert len(lines) == 11


def test_log_file_that_cannot_be_opened_stops_no_work(
    tmp_path: Path, logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file in the folder's place")
    handler = LogFile(RotatingFile(tmp_path / "logs" / "daemon.log"), retry=0.0)
    handler.start()
    logger.addHandler(handler)
    logger.error("lost")
    handler.close()
    handler.close()
    assert handler.lost == 1
    folder = tmp_path / "logs"
    assert caplog.messages == [f"no log is kept: {folder} is not a folder. Move {folder} away, then restart the node."]


def read(tail: LogTail) -> list[str]:
    return list(tail.read())


def test_log_tail_reads_rotated_files_from_the_oldest_record(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    for number in range(FILES):
        rotated(path, number).write_text(f"from {number}\n    more of {number}\n")
    tail = LogTail(path)
    assert read(tail) == [f"from {number}\n    more of {number}" for number in reversed(range(FILES))]
    assert read(tail) == []
    tail.close()


def test_log_tail_follows_through_rotations(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    file = RotatingFile(path, max_bytes=200, files=4)
    file.write(b"line 0\n")
    tail = LogTail(path)
    seen = read(tail)
    for number in range(1, 100):
        file.write(f"line {number} {'x' * 30}\n".encode())
        if number % 7 == 0:  # more than one rotation may lie between two reads
            seen += read(tail)
    seen += read(tail)
    tail.close()
    file.close()
    assert [int(line.split()[1]) for line in seen] == list(range(100))


def test_log_tail_waits_for_the_end_of_a_line_and_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    tail = LogTail(path)
    assert not tail.found
    assert read(tail) == []
    with path.open("w") as file:
        file.write("begun")
        file.flush()
        assert read(tail) == []
        file.write(" and ended\nnext")
        file.flush()
        assert read(tail) == ["begun and ended"]
    path.write_text("short\n")  # truncated in place
    assert read(tail) == ["short"]
    tail.close()


@pytest.mark.parametrize("model", ["daemon", "Daemon", "audit", "daemon.old"])
def test_engine_log_is_never_a_log_of_the_daemon(tmp_path: Path, model: str) -> None:
    written = engine_log(tmp_path, model).name.casefold()
    assert not written.startswith((log_path(tmp_path).stem, audit_path(tmp_path).stem))
    assert engine_log(tmp_path, "rpc-server").name == "rpc-server.log"
