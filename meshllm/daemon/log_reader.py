"""Reads rotated log files from the oldest record to the newest, and follows them while they are rotated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from meshllm.daemon.log_file import FILES, rotated
from meshllm.daemon.log_format import CONTINUATION

READ_BYTES = 1 << 18
# A longer line is cut into several.
MAX_LINE = 1 << 20


class LogTail:
    """The records of `path` and of the older files behind it. `read` returns what is new since the last call."""

    def __init__(self, path: Path, older: tuple[Path, ...] | None = None) -> None:
        """`older`: the rotated files, newest first. Files that cannot be opened are skipped."""
        self._path = path
        self._older = tuple(rotated(path, number) for number in range(1, FILES)) if older is None else older
        self._files = self._open_all()
        self._partial = b""

    @property
    def found(self) -> bool:
        """Whether there is any file."""
        return bool(self._files)

    def read(self) -> Iterator[str]:
        """The complete records that are new. A record is a line and the indented lines that continue it."""
        record: list[str] = []
        for line in self._lines():
            if record and not line.startswith(CONTINUATION):
                yield "\n".join(record)
                record = []
            record.append(line)
        if record:
            yield "\n".join(record)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._files = []

    def _lines(self) -> Iterator[str]:
        self._find_new_files()
        while self._files:
            file = self._files[0]
            while data := file.read(READ_BYTES):
                *lines, self._partial = (self._partial + data).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace")
                if len(self._partial) > MAX_LINE:
                    yield self._partial.decode("utf-8", "replace")
                    self._partial = b""
            if len(self._files) == 1:
                return
            # The end of a file that is written no more.
            if self._partial:
                yield self._partial.decode("utf-8", "replace")
                self._partial = b""
            file.close()
            del self._files[0]

    def _open_all(self) -> list[BufferedReader]:
        """All files, oldest first. Opened newest first: a rotation meanwhile shows a file twice instead of never."""
        found: list[BufferedReader] = []
        seen: set[tuple[int, int]] = set()
        for path in (self._path, *self._older):
            try:
                file = path.open("rb")
            except OSError:
                continue
            if (identity := _identity(file)) in seen:
                file.close()
                continue
            seen.add(identity)
            found.insert(0, file)
        return found

    def _find_new_files(self) -> None:
        """Append the files that were begun since the last read."""
        if not self._files:
            self._files = self._open_all()
            return
        newest = self._files[-1]
        try:
            now = self._path.stat()
        except OSError:
            return
        if (now.st_dev, now.st_ino) == _identity(newest):
            if now.st_size < newest.tell():  # truncated in place
                newest.seek(0)
                self._partial = b""
            return
        current = _identity(newest)
        opened = self._open_all()
        identities = [_identity(file) for file in opened]
        # Ours is among the rotated ones; if it is gone already, all that is there is new.
        keep = identities.index(current) + 1 if current in identities else 0
        for file in opened[:keep]:
            file.close()
        self._files += opened[keep:]


def _identity(file: BufferedReader) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
