"""Output of child processes: bounded lines, and a log file that rotates and survives a full disk."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

LINE_LENGTH = 4096
LOG_BYTES = 8 << 20
# A disk that is full again and again is reported at most this often per log.
WARNING_INTERVAL_SECONDS = 60.0


class LineSplitter:
    """Turns the chunks of a child's output into lines of printable text, each of at most `length` characters."""

    def __init__(self, length: int = LINE_LENGTH) -> None:
        self._length = length
        self._line = bytearray()  # the current line; one byte beyond the limit tells that it was cut

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without their line ends."""
        *ended, rest = data.split(b"\n")
        lines = []
        for piece in ended:
            self._append(piece)
            lines.append(self._take())
        self._append(rest)
        return lines

    def finish(self) -> list[str]:
        """The last line, if the output did not end with a line end."""
        return [self._take()] if self._line else []

    def _append(self, piece: bytes) -> None:
        self._line += piece[: self._length + 1 - len(self._line)]

    def _take(self) -> str:
        text = escape_control_characters(self._line.decode("utf-8", "replace").rstrip())
        if len(text) > self._length:
            mark = " [line cut]"
            text = text[: self._length - len(mark)] + mark
        self._line.clear()
        return text


def escape_control_characters(text: str) -> str:
    r"""`text` with unprintable characters as escapes (`\x1b`, `\u202e`), so that it cannot control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\t" else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


class ChildLog:
    """Appends lines to `path` (mode 0600); past `max_bytes` it renames the file to `*.old.log` and begins a new one.

    The two files together hold at most about twice `max_bytes`. Nothing here raises OSError: while the file cannot be
    written (disk full, folder removed), lines are dropped and counted, one warning is logged, and the count is written
    to the file once that works again.
    """

    def __init__(self, path: Path, max_bytes: int = LOG_BYTES, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._warned_at: float | None = None
        self._warned = False  # about the present failure
        self._max_bytes = max_bytes
        self._file: io.FileIO | None = None
        self._cut = False  # the file ends within a line
        self.dropped = 0
        """Lines that could not be written since the last successful write."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, lines: Iterable[str]) -> None:
        """Append the lines, or drop them where the file cannot be written."""
        texts = [f"{line}\n".encode("utf-8", "replace") for line in lines]
        if not texts:
            return
        try:
            if self.dropped:
                self._append(f"[{self.dropped} lines were dropped: this file could not be written]\n".encode())
                if self._warned:
                    logger.warning("%s can be written again; %d lines were dropped", self._path, self.dropped)
                self.dropped, self._warned = 0, False
            self._append(b"".join(texts))
        except OSError as error:
            if not self.dropped:
                self._warn(error)
            self.dropped += len(texts)
            self.close()

    def _warn(self, error: OSError) -> None:
        now = self._clock()
        if self._warned_at is None or now - self._warned_at >= WARNING_INTERVAL_SECONDS:
            self._warned, self._warned_at = True, now
            logger.warning(
                "cannot write %s (%s): output is dropped until that works", self._path, error.strerror or error
            )

    def close(self) -> None:
        """Close the file; the next `write` opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _append(self, data: bytes) -> None:
        file = self._rotated()
        if self._cut:
            data = b"\n" + data
        view = memoryview(data)
        while view:
            count = file.write(view) or 0
            view = view[count:]
            self._cut = bool(view)

    def _rotated(self) -> io.FileIO:
        """The open file, a new one if the old one is full. Raises OSError."""
        file = self._file or self._open()
        if os.fstat(file.fileno()).st_size < self._max_bytes:
            return file
        if self._is_current(file):  # another writer of the same path may have renamed it already
            self._path.replace(self._path.with_suffix(".old.log"))
        self.close()
        self._cut = False
        return self._open()

    def _open(self) -> io.FileIO:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = io.FileIO(self._path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))
        return self._file

    def _is_current(self, file: io.FileIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False
