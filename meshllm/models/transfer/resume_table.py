"""How many bytes of each chunk of a partial file have arrived, in a small file beside it.

Invariants: a number grows only after the bytes were written. A second table holds what was flushed to disk; after a
reboot only that one is used. A damaged table is discarded.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from pathlib import Path
from typing import Final

MAX_CHUNKS: Final = 1 << 20  # 4 TiB in chunks of 4 MiB; the table is in memory

_MAGIC: Final = b"mesh-as1"
_HEADER = struct.Struct("=8sIIQ32s40s")  # magic, byte order mark, bytes per chunk, size, sha256, boot id
_ORDER: Final = 0x01020304
_ENTRY: Final = 4


class ResumeTable:
    """Bytes that have arrived from the start of each chunk. Used by one process at a time; every method blocks.

    Not a memory map: on a full disk that would end the process with a signal; a write raises OSError.
    """

    def __init__(self, path: Path, sha256: str, size: int, chunk_bytes: int, there: int) -> None:
        """Open or create the table at `path` for a partial file of `there` bytes (with holes). Raises OSError."""
        count = -(-size // chunk_bytes)
        if not 0 < count <= MAX_CHUNKS:
            raise ValueError(f"{size} bytes in chunks of {chunk_bytes} are {count} chunks")
        self._last = size - (count - 1) * chunk_bytes
        self._chunk_bytes = chunk_bytes
        nothing = array("I", bytes(_ENTRY * count))
        self._table, durable = read_tables(path, sha256, size, chunk_bytes, there) or (nothing, nothing)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(self._fd, _HEADER.size + 2 * _ENTRY * count)
            # The header last: until it has this boot id, only the flushed table is used.
            os.pwrite(self._fd, durable.tobytes(), self._durable(0))
            os.pwrite(self._fd, self._table.tobytes(), self._live(0))
            head = _HEADER.pack(_MAGIC, _ORDER, chunk_bytes, size, bytes.fromhex(sha256), _boot())
            os.pwrite(self._fd, head, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, chunk: int) -> int:
        return self._table[chunk]

    def __setitem__(self, chunk: int, count: int) -> None:
        if not 0 <= count <= self.length(chunk):
            raise ValueError(f"chunk {chunk} cannot have {count} bytes")
        entry = array("I", [count]).tobytes()
        if count < self._table[chunk]:
            os.pwrite(self._fd, entry, self._durable(chunk))
        os.pwrite(self._fd, entry, self._live(chunk))
        self._table[chunk] = count

    def length(self, chunk: int) -> int:
        """Bytes of the complete chunk."""
        return self._last if chunk == len(self._table) - 1 else self._chunk_bytes

    def total(self) -> int:
        """Bytes that have arrived."""
        return sum(self._table)

    def snapshot(self) -> array[int]:
        """A copy of the table, for `flushed` once those bytes are on disk."""
        return self._table[:]

    def flushed(self, snapshot: array[int]) -> None:
        """Record that the snapshot is on disk, except for chunks discarded since."""
        durable = array("I", map(min, snapshot, self._table))
        os.pwrite(self._fd, durable.tobytes(), self._durable(0))

    def sync(self) -> None:
        """Flush the tables to disk."""
        flush(self._fd)

    def close(self) -> None:
        """Close the table file."""
        os.close(self._fd)

    def _live(self, chunk: int) -> int:
        return _HEADER.size + _ENTRY * chunk

    def _durable(self, chunk: int) -> int:
        return _HEADER.size + _ENTRY * (len(self._table) + chunk)


def read_tables(
    path: Path, sha256: str, size: int, chunk_bytes: int, there: int
) -> tuple[array[int], array[int]] | None:
    """Bytes of each chunk that have arrived, and of those the ones flushed to disk; None if the table is invalid.

    A file without a table was written from its start by an earlier version of this program.
    """
    count = -(-size // chunk_bytes)
    if not 0 < count <= MAX_CHUNKS:
        return None
    lengths = [max(0, min(chunk_bytes, size - begin, there - begin)) for begin in range(0, size, chunk_bytes)]
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER.size + 2 * _ENTRY * count + 1)
    except FileNotFoundError:
        return array("I", lengths), array("I", bytes(_ENTRY * count))
    except OSError:
        return None
    if len(data) != _HEADER.size + 2 * _ENTRY * count:
        return None
    *what, boot = _HEADER.unpack_from(data)
    if what != [_MAGIC, _ORDER, chunk_bytes, size, bytes.fromhex(sha256)]:
        return None
    live, durable = array("I", data[_HEADER.size :][: _ENTRY * count]), array("I", data[-_ENTRY * count :])
    if max(live) > chunk_bytes or max(durable) > chunk_bytes:
        return None
    # No more than the file holds can have arrived.
    durable = array("I", map(min, durable, lengths))
    return (array("I", map(min, live, lengths)) if boot == _boot() else durable[:]), durable


def flush(descriptor: int) -> None:
    """Flush a file to disk."""
    if sys.platform == "linux":
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def _boot() -> bytes:
    """An id of this boot of the machine."""
    try:
        found = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        import psutil

        found = str(round(psutil.boot_time())).encode()
    return found[:40].ljust(40)
