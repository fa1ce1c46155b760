"""Hashes model files: the whole file and, at each chunk's end, the prefix up to there.

Every byte is hashed once: the digest of a chunk is the sha256 of all bytes up to its end, so the last one is the file's
own. A file that is arriving is hashed while it arrives, so that a wrong chunk is found early. Runs in threads.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshllm.util.threads import StopSignal

from .partial_file import PartialFile

# Bytes between two flushes to disk: the most that a power failure costs.
CHECKPOINT_BYTES: Final = 256 << 20
# How often the stop signal is checked while nothing arrives (seconds).
_TICK_SECONDS: Final = 0.1
_READ_BYTES: Final = 1 << 20
DIGEST_BYTES: Final = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class PrefixDigests:
    """`sha256` of a whole file in hex; `chunks`: for each chunk 32 raw bytes, the sha256 of the file up to its end."""

    sha256: str
    chunks: bytes


def digests(stop: StopSignal, path: Path, chunk_bytes: int, report: Callable[[int], None]) -> PrefixDigests:
    """Digests of a complete file; `report` is called with the number of bytes read. Raises OSError."""
    whole, chunks, done = hashlib.sha256(), bytearray(), 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(min(_READ_BYTES, chunk_bytes - done % chunk_bytes)):
            with stop:
                done += len(data)
            whole.update(data)
            if done % chunk_bytes == 0:
                chunks += whole.digest()
            report(done)
    if done % chunk_bytes:
        chunks += whole.digest()
    return PrefixDigests(whole.hexdigest(), bytes(chunks))


def hash_arriving(stop: StopSignal, partial: PartialFile, report: Callable[[int], None]) -> PrefixDigests:
    """Digests of a file that is arriving; returns once it is complete and read, right or wrong.

    A chunk that does not match `partial.expected` is rejected and downloaded again. A second mismatch from a source
    that claims no digest discards the list; then only the file's hash decides. `report` is called with the number of
    bytes read. Raises OSError.
    """
    with partial.path.open("rb", buffering=0) as file:
        return _hash_arriving(stop, partial, _PrefixReader(partial, file.fileno()), report)


def _hash_arriving(
    stop: StopSignal, partial: PartialFile, reader: _PrefixReader, report: Callable[[int], None]
) -> PrefixDigests:
    saved = partial.arrived
    while True:
        reader.restart_if_changed()
        if reader.chunk == partial.count:
            partial.checkpoint()  # a verified file is on disk
            return reader.result()
        end = partial.span(reader.chunk)[1]
        if partial.wait_for_prefix(end - 1, _TICK_SECONDS) < end:
            with stop:
                pass
            continue
        reader.read()
        with stop:
            reader.check_chunk()
        if partial.arrived - saved >= CHECKPOINT_BYTES:
            saved = partial.arrived
            partial.checkpoint()
        report(end)


class _PrefixReader:
    """The state of `hash_arriving`: everything before `chunk` matches the expected list, if one is used."""

    def __init__(self, partial: PartialFile, file: int) -> None:
        self._partial = partial
        self._file = file
        self._expected: bytes | None = None
        self._doubted: bytes | None = None
        self._begin()

    def _begin(self) -> None:
        self._discards = self._partial.discards
        self._whole, self._chunks = hashlib.sha256(), bytearray()
        self._next, self._rejected = self._whole, set[int]()

    @property
    def chunk(self) -> int:
        """The next chunk to read."""
        return len(self._chunks) // DIGEST_BYTES

    def result(self) -> PrefixDigests:
        """The digests of everything read."""
        return PrefixDigests(self._whole.hexdigest(), bytes(self._chunks))

    def restart_if_changed(self) -> None:
        """Start again if a chunk was discarded, or if a new list contradicts what was read."""
        partial, expected = self._partial, self._partial.expected
        if self._list_changed():
            self._expected = expected
            if expected is not None and not expected.startswith(self._chunks):
                self._begin()
        if partial.discards != self._discards:
            self._begin()

    def _list_changed(self) -> bool:
        return self._partial.expected not in (self._expected, self._doubted)

    def read(self) -> None:
        """Hash the next chunk, which has arrived. Raises OSError."""
        buffers = self._partial.buffers
        if (data := buffers.take_kept(self.chunk)) is None:
            begin, end = self._partial.span(self.chunk)
            data = buffers.take()[: end - begin]
            _read_into(data, self._file, begin)
        self._next = self._whole.copy()
        self._next.update(data)
        buffers.release(data)

    def check_chunk(self) -> None:
        """Accept the chunk and go on, or reject it. Raises OSError.

        A chunk that came after the list was changed is not judged by the old list, nor by what that list let pass: its
        source is right, and would be banned.
        """
        digest, chunk, expected = self._next.digest(), self.chunk, self._expected
        if expected is not None and digest_of(expected, chunk) != digest:
            if self._list_changed():
                return
            if chunk not in self._rejected or self._partial.chunk_source(chunk) is not None:
                self._rejected.add(chunk)
                self._partial.reject_chunk(chunk)
                return
            self._expected, self._doubted = None, expected
        self._whole = self._next
        self._chunks += digest


def _read_into(buffer: memoryview, file: int, offset: int) -> None:
    while buffer:
        if not (count := os.preadv(file, [buffer], offset)):
            raise OSError(errno.EIO, "the file has become shorter")
        buffer, offset = buffer[count:], offset + count


def digest_of(digests: bytes, chunk: int) -> bytes:
    """The digest of one chunk in a list of digests."""
    return digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]


def first_difference(found: bytes, expected: bytes) -> int:
    """The first chunk at which two digest lists differ; their length if there is none."""
    count = len(found) // DIGEST_BYTES
    return next((chunk for chunk in range(count) if digest_of(found, chunk) != digest_of(expected, chunk)), count)
