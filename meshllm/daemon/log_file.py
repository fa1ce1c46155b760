"""The daemon's log file: rotated, bounded, written by a thread of its own.

Invariants: a log call never waits for the disk and never raises; the files take at most `files * max_bytes`; a disk
that does not take a line costs that line, which is counted, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Final

from meshllm.daemon.log_flood import FloodFilter
from meshllm.daemon.log_format import JsonFormatter, TextFormatter

log = logging.getLogger(__name__)

LOG_NAME: Final = "daemon.log"
MAX_BYTES: Final = 10_000_000
FILES: Final = 5
# Lines that wait for the disk; at 200 bytes each about 2 MB.
QUEUE_LINES: Final = 10_000
# After a failed write, and to notice a file that was removed.
RETRY_SECONDS: Final = 2.0
CLOSE_SECONDS: Final = 5.0
# Lines are written in batches: a thread that wakes for each line would take the interpreter from the event loop.
BATCH_SECONDS: Final = 0.1


def log_path(home: Path) -> Path:
    """The file that is written now; older ones are `daemon.log.1` (the newest) to `daemon.log.4`."""
    return home / "logs" / LOG_NAME


def rotated(path: Path, number: int) -> Path:
    """The file number `number` behind `path`; 0 is `path`."""
    return path.with_name(f"{path.name}.{number}") if number else path


@dataclass(frozen=True, slots=True)
class LogProblem:
    """Why a log file cannot be used (a sentence without its full stop), and what to do."""

    message: str
    advice: str


def log_problem(path: Path, error: OSError) -> LogProblem:
    """What is wrong with the log file `path`, which could not be opened."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        return LogProblem(f"{folder} is not a folder", f"Move {folder} away, then restart the node.")
    if path.is_dir():
        return LogProblem(f"{path} is a folder", f"Move {path} away, then restart the node.")
    return LogProblem(
        f"{error.filename or path} cannot be used: {error.strerror or error}",
        f"Check the owner, the permissions and the free space of {folder}, then restart the node.",
    )


class RotatingFile:
    """Appends lines to a file and rotates it. Not thread-safe; `write` raises OSError and may be tried again."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, files: int = FILES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        self._descriptor: int | None = None
        self._size = 0
        self._torn = False

    def write(self, line: bytes) -> None:
        """Append `line`, which ends in a newline and is cut to half of a file. Raises OSError."""
        if len(line) > self._max_bytes // 2:
            line = line[: self._max_bytes // 2] + b"\n"
        self.open()
        if self._size and self._size + len(line) + self._torn > self._max_bytes:
            self._rotate()
        assert self._descriptor is not None
        data = b"\n" + line if self._torn else line
        while data:
            written = os.write(self._descriptor, data)
            self._size += written
            data = data[written:]
            self._torn = bool(data)

    def open(self) -> None:
        """Open the file if it is not open. Raises OSError."""
        if self._descriptor is None:
            self._open()

    def check(self) -> None:
        """Open the file again if it was removed or moved away by another program."""
        if self._descriptor is None:
            return
        try:
            now, ours = self.path.stat(), os.fstat(self._descriptor)
            gone = (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)
        except OSError:
            gone = True
        if gone:
            self.close()

    def close(self) -> None:
        """Close the file; the next `write` opens it again."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            self._size = os.fstat(descriptor).st_size
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                rotated(self.path, number - 1).replace(rotated(self.path, number))
        self._torn = False
        self._open()


class LogFile(logging.Handler):
    """A logging handler that hands lines to a writer thread. `start` it once the home is this process's own, `close`
    it at the end; what is logged before `start` waits in the queue."""

    def __init__(
        self, file: RotatingFile, *, json: bool = False, queue_lines: int = QUEUE_LINES, retry: float = RETRY_SECONDS
    ) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter() if json else TextFormatter())
        self.addFilter(FloodFilter())
        self.lost = 0
        self._file = file
        self._retry = retry
        self._queue: queue.Queue[str | None] = queue.Queue(queue_lines)
        self._thread: Thread | None = None
        self._closing = Event()
        self._dropped = 0  # since the last note of it in the file; by the loop's thread and the writer's
        self._reason = ""

    def start(self) -> None:
        """Begin to write. A file that cannot be opened is reported to the other handlers, once."""
        if self._thread is None:
            try:
                self._file.open()
            except OSError as error:
                problem = log_problem(self._file.path, error)
                log.warning("no log is kept: %s. %s", problem.message, problem.advice)
            self._thread = Thread(target=self._write_all, name="log file", daemon=True)
            self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line; drop and count it when the queue is full."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a log call must not raise
            line = f"a log record could not be formatted: {error!r}"
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._drop("the queue of the log file is full")

    def close(self) -> None:
        """Write what is queued, wait at most 5 s for it, and end the thread. Idempotent."""
        thread, self._thread = self._thread, None
        self._closing.set()
        if thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=CLOSE_SECONDS)
                thread.join(CLOSE_SECONDS)
        super().close()

    def _drop(self, reason: str) -> None:
        self.lost += 1
        self._dropped += 1
        self._reason = reason

    def _write_all(self) -> None:
        next_try = next_check = 0.0
        idle = True
        while (line := self._queue.get()) is not None:
            if idle:
                self._closing.wait(BATCH_SECONDS)
            idle = self._queue.empty()
            now = time.monotonic()
            if now < next_try:
                self._drop(self._reason)
                continue
            if now >= next_check:
                next_check = now + self._retry
                self._file.check()
            try:
                if self._dropped:
                    self._file.write(self._note())
                    self._dropped = 0
                self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
            except OSError as error:
                self._file.close()
                self._drop(error.strerror or str(error))
                next_try = now + self._retry
        self._file.close()

    def _note(self) -> bytes:
        text = "%d log lines were lost: %s"
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, text, (self._dropped, self._reason), None)
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"


# A model with such a name must not write into the logs of the daemon itself.
OTHER_LOGS = ("daemon", "audit")


def engine_log(home: Path, model: str) -> Path:
    """The log of the engine process that serves `model`."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in model)[:100]
    if name.casefold().startswith(OTHER_LOGS):
        name = f"model-{name}"
    return home / "logs" / f"{name}.log"
