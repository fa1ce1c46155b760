"""Digests of model files: of the whole, and on the way there, so that other nodes can check what they get of it.

Law: every byte is hashed once. What is said of a chunk is the sha256 of all bytes up to its end: one pass in the file's
order gives all of them, and the last is the file's own. A file that is arriving is read while it arrives: a chunk is
proved as soon as all before it are, and one that is not what it should be is found out then, not at the end. All of it
runs in threads that can be stopped.
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

# What has arrived is flushed to the disk at least this often: a power cut costs no more. Rarely enough to cost nothing.
CHECKPOINT_BYTES: Final = 256 << 20
# How soon a follower notices that it should stop, in seconds, while nothing arrives.
_TICK_SECONDS: Final = 0.1
_READ_BYTES: Final = 1 << 20
DIGEST_BYTES: Final = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class PrefixDigests:
    """`sha256` of a whole file in hex, and `chunks`: 32 raw bytes for each chunk, the sha256 of the file's bytes up to
    that chunk's end."""

    sha256: str
    chunks: bytes


def digests(stop: StopSignal, path: Path, chunk_bytes: int, report: Callable[[int], None]) -> PrefixDigests:
    """Of a file that is there whole; `report` hears how many bytes were read. Raises OSError."""
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


def follow(stop: StopSignal, assembly: PartialFile, report: Callable[[int], None]) -> PrefixDigests:
    """Of a file that is arriving; returns once it is complete and read, whether or not it is the right one.

    What is not as `assembly.expected` says is refuted, and so fetched again; where that is no use, because it comes
    again from somebody who never said what it would be, the list is not believed any more, and the whole file is the
    judge. `report` hears how many bytes were read. Raises OSError.
    """
    with assembly.path.open("rb", buffering=0) as file:
        return _follow(stop, assembly, _PrefixReader(assembly, file.fileno()), report)


def _follow(
    stop: StopSignal, assembly: PartialFile, reader: _PrefixReader, report: Callable[[int], None]
) -> PrefixDigests:
    saved = assembly.arrived
    while True:
        reader.heed()
        if reader.chunk == assembly.count:
            assembly.checkpoint()  # what is called verified is on the disk
            return reader.found()
        end = assembly.span(reader.chunk)[1]
        if assembly.wait_for_prefix(end - 1, _TICK_SECONDS) < end:
            with stop:
                pass
            continue
        reader.read()
        with stop:
            reader.judge()
        if assembly.arrived - saved >= CHECKPOINT_BYTES:
            saved = assembly.arrived
            assembly.checkpoint()
        report(end)


class _PrefixReader:
    """How far `follow` has come: everything before `chunk` fits the list, if there is one that can be believed."""

    def __init__(self, assembly: PartialFile, file: int) -> None:
        self._assembly = assembly
        self._file = file
        self._expected: bytes | None = None
        self._doubted: bytes | None = None
        self._begin()

    def _begin(self) -> None:
        self._spoilt = self._assembly.spoilt
        self._whole, self._chunks = hashlib.sha256(), bytearray()
        self._next, self._refuted = self._whole, set[int]()

    @property
    def chunk(self) -> int:
        """The one that is to be read next."""
        return len(self._chunks) // DIGEST_BYTES

    def found(self) -> PrefixDigests:
        """Of all that was read."""
        return PrefixDigests(self._whole.hexdigest(), bytes(self._chunks))

    def heed(self) -> None:
        """Begin again where what was read is not there any more, or another list says otherwise of it."""
        assembly, expected = self._assembly, self._assembly.expected
        if expected != self._expected and expected != self._doubted:
            self._expected = expected
            if expected is not None and not expected.startswith(self._chunks):
                self._begin()
        if assembly.spoilt != self._spoilt:
            self._begin()

    def read(self) -> None:
        """Hash the next chunk, which is there. Raises OSError."""
        rooms = self._assembly.rooms
        if (data := rooms.kept(self.chunk)) is None:
            begin, end = self._assembly.span(self.chunk)
            data = rooms.take()[: end - begin]
            _fill(data, self._file, begin)
        self._next = self._whole.copy()
        self._next.update(data)
        rooms.give_back(data)

    def judge(self) -> None:
        """Go on to the next chunk, unless this one is refuted. Raises OSError."""
        digest, chunk, expected = self._next.digest(), self.chunk, self._expected
        if expected is not None and digest_of(expected, chunk) != digest:
            if chunk not in self._refuted or self._assembly.giver(chunk) is not None:
                self._refuted.add(chunk)
                self._assembly.refute(chunk)
                return
            self._expected, self._doubted = None, expected
        self._whole = self._next
        self._chunks += digest


def _fill(room: memoryview, file: int, place: int) -> None:
    while room:
        if not (count := os.preadv(file, [room], place)):
            raise OSError(errno.EIO, "the file has become shorter")
        room, place = room[count:], place + count


def digest_of(digests: bytes, chunk: int) -> bytes:
    """What a list of digests says of one chunk."""
    return digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]


def first_difference(found: bytes, expected: bytes) -> int:
    """The first chunk of which two lists of digests say different things; their length if there is none."""
    count = len(found) // DIGEST_BYTES
    return next((chunk for chunk in range(count) if digest_of(found, chunk) != digest_of(expected, chunk)), count)
