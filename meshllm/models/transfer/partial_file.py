"""A partially downloaded file that several sources fill at once.

Invariants: a missing byte is claimed by one source at a time; bytes that arrived are kept; the rest of a slow source's
claim is shared with an idle one. The content is verified by `prefix_hash.py`, not here.

The file is cut into chunks. Of each chunk, the bytes that arrived are a run from its start. A source claims a ByteRange
(the rest of a chunk and untouched chunks behind it), writes it in order and releases it. All methods may be called from
any thread; `write` and `write_chunk` block and are called inside `with stop:`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .buffer_pool import BufferPool
from .resume_table import ResumeTable, flush

CHUNK_BYTES: Final = 4 << 20
"""Bytes per chunk, the unit of claims and digests: 1 KB of digests per 128 MB."""

# A claim is not shared before this age (seconds): connecting and TCP's slow start say nothing about the speed.
GRACE_SECONDS: Final = 2.0
# A claim that will be complete within this many seconds is not shared.
OPEN_WAIT_SECONDS: Final = 1.0
# An idle source tries to claim again after this many seconds, because another may have become slow.
LOOK_AGAIN_SECONDS: Final = 1.0

Accept = Callable[[int], bool]
"""Whether a source has that chunk. It must not call the PartialFile."""


@dataclass(slots=True, eq=False)
class ByteRange:
    """A run of missing bytes claimed by one source: from `position`, which grows, to `end`, which may decrease.

    `held` becomes False when it was released or given to a faster source; bytes that arrive later are dropped.
    """

    source: str
    begin: int
    end: int
    since: float
    position: int = field(init=False)
    last_data: float = field(init=False)  # time of the last data
    buffered: int = 0  # bytes received and not written yet
    held: bool = True
    writing: int = field(init=False)  # bytes before this position are being written

    def __post_init__(self) -> None:
        self.position = self.writing = self.begin
        self.last_data = self.since


class PartialFile:
    """The file at `path` with its resume table beside it, used by one process at a time.

    `clock` returns seconds. The constructor raises OSError. An invalid resume table of an earlier run is discarded.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        sha256: str,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.size = size
        self.sha256 = sha256
        self.chunk_bytes = chunk_bytes
        self.by_source: Counter[str] = Counter()
        self.expected: bytes | None = None
        """Chunk digests as peers claim them (see `PrefixDigests.chunks`); set by the peer source."""
        self.discards = 0
        """Number of `discard_chunk` calls; `hash_arriving` starts again when it changes."""
        self.on_arrival: Callable[[int], None] | None = None
        """Called from any thread with the number of bytes that have arrived, when it grows."""
        self._clock = clock
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._table = ResumeTable(state_path(path), sha256, size, chunk_bytes, os.fstat(self._file).st_size)
        except BaseException:
            os.close(self._file)
            raise
        self.buffers = BufferPool(min(chunk_bytes, size))
        self._open = True
        self._arrived = self._table.total()
        self._whole = sum(self.has(chunk) for chunk in range(self.count))
        self._first = 0  # all chunks before it are complete
        self._low = 0  # all chunks before it are complete or claimed
        self._find_first()
        self._pieces: list[ByteRange] = []
        self._range_of_chunk: dict[int, ByteRange] = {}
        self._chunk_sources: dict[int, str] = {}  # id of the peer that claims the chunk's digest
        self._writing_chunks: set[int] = set()  # chunks being written by `write_chunk`
        self._rejected: list[tuple[int, str]] = []
        self._rates: dict[str, float] = {}  # bytes per second of a source's last claim
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # -- what is there

    @property
    def count(self) -> int:
        """The number of chunks."""
        return len(self._table)

    @property
    def arrived(self) -> int:
        """Bytes that have arrived, in this run and earlier ones."""
        return self._arrived

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived, verified or not."""
        return self._arrived == self.size

    @property
    def prefix(self) -> int:
        """Length of the contiguous run of bytes from the start of the file."""
        first = self._first
        return self.size if first == self.count else first * self.chunk_bytes + self._table[first]

    def source_bytes(self) -> tuple[tuple[str, int], ...]:
        """Bytes received from each source since the file was opened."""
        with self._changed:
            return tuple(self.by_source.items())

    def has(self, chunk: int) -> bool:
        """Whether the chunk is complete."""
        return self._table[chunk] == self._table.length(chunk)

    def span(self, chunk: int) -> tuple[int, int]:
        """Offsets in the file at which the chunk begins and ends."""
        return chunk * self.chunk_bytes, min(self.size, (chunk + 1) * self.chunk_bytes)

    def wait_for_prefix(self, beyond: int, seconds: float) -> int:
        """Block until the prefix is longer than `beyond` bytes, at most `seconds`; returns the prefix."""
        with self._changed:
            self._changed.wait_for(lambda: self.prefix > beyond, seconds)
            return self.prefix

    async def changed(self, within: float | None = LOOK_AGAIN_SECONDS, *, complete: bool = True) -> None:
        """Return when a new claim may be possible, when the file is complete (`complete` False: no longer complete), or
        after `within` seconds, when a slow source's claim may be shared."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._changed:
            if self.complete is complete:
                return
            self._waiting.append((loop, future))
        try:
            await asyncio.wait([future], timeout=within)
        finally:
            with self._changed:
                self._waiting = [item for item in self._waiting if item[1] is not future]

    # -- who fetches what

    def claim(self, source: str, most_chunks: int, accept: Accept | None = None) -> ByteRange | None:
        """A range of at most `most_chunks` accepted chunks for `source`; None if there is nothing to claim now.

        Bytes are counted under `source`, which several connections may share. If no chunk is free, the rest of a slow
        source's claim is shared. Claims become smaller towards the end, so that all sources finish together.
        """
        with self._changed:
            span = self._free(most_chunks, accept) or self._from_slow_source(source, accept)
            if span is None:
                return None
            piece = ByteRange(source, *span, since=self._clock())
            self._pieces.append(piece)
            for chunk in self._chunks(piece):
                self._range_of_chunk[chunk] = piece
            return piece

    def release(self, piece: ByteRange) -> None:
        """Give up the rest of the claim; bytes that arrived are kept. Idempotent."""
        with self._changed:
            if piece.held:
                self._release_range(piece)
                self._notify_waiters()

    def _free(self, most_chunks: int, accept: Accept | None) -> tuple[int, int] | None:
        free = self.count - self._whole - len(self._range_of_chunk)
        most = max(1, min(most_chunks, free // (2 * len(self._pieces) + 2)))
        while self._low < self.count and not self._is_free(self._low):
            self._low += 1
        for chunk in range(self._low, self.count):
            if self._is_free(chunk) and (accept is None or accept(chunk)):
                break
        else:
            return None
        last = chunk
        while last + 1 < min(self.count, chunk + most) and self._is_untouched(last + 1, accept):
            last += 1
        return self.span(chunk)[0] + self._table[chunk], self.span(last)[1]

    def _is_free(self, chunk: int) -> bool:
        return chunk not in self._range_of_chunk and not self.has(chunk)

    def _is_untouched(self, chunk: int, accept: Accept | None, holder: ByteRange | None = None) -> bool:
        """Whether no byte of the chunk has arrived and only `holder` may have claimed it."""
        if self._table[chunk] or self._range_of_chunk.get(chunk) is not holder:
            return False
        return accept is None or accept(chunk)

    def _from_slow_source(self, source: str, accept: Accept | None) -> tuple[int, int] | None:
        """A part of the slowest claim for `source`."""
        now = self._clock()
        slow = [(self._seconds_left(piece, now), piece) for piece in self._pieces if now - piece.since >= GRACE_SECONDS]
        for seconds, piece in sorted(slow, key=lambda item: -item[0]):
            if seconds <= OPEN_WAIT_SECONDS:
                return None
            span = self._split_tail(piece, accept) or self._take_over(source, piece, seconds, accept)
            if span is not None:
                return span
        return None

    def _seconds_left(self, piece: ByteRange, now: float) -> float:
        """Seconds until the claim is complete at its average rate; infinite if its source is silent."""
        done = piece.position + piece.buffered - piece.begin
        if done <= 0 or now - piece.last_data >= GRACE_SECONDS:
            return float("inf")
        return (piece.end - piece.begin - done) * (now - piece.since) / done

    def _split_tail(self, piece: ByteRange, accept: Accept | None) -> tuple[int, int] | None:
        """The latter half of the chunks that the claim has not reached yet; they leave the claim."""
        at = max(piece.position, piece.writing - 1) // self.chunk_bytes
        last = (piece.end - 1) // self.chunk_bytes
        first = last + 1
        while first - 1 > at + (last - at) // 2 and self._is_untouched(first - 1, accept, piece):
            first -= 1
        if first > last:
            return None
        end, piece.end = piece.end, self.span(first)[0]
        return piece.end, end

    def _take_over(
        self, source: str, piece: ByteRange, seconds: float, accept: Accept | None
    ) -> tuple[int, int] | None:
        """The rest of the claim's current chunk, if `source` will finish it in half the time."""
        rest, rate = piece.end - piece.position, self._rates.get(source)
        quick = seconds > 2 * rest / rate if rate else seconds > 5 * OPEN_WAIT_SECONDS
        ours = accept is None or all(accept(chunk) for chunk in self._chunks(piece))
        if not (quick and ours and rest) or piece.writing > piece.position:
            return None
        span = piece.position, piece.end
        self._release_range(piece)
        return span

    def _release_range(self, piece: ByteRange) -> None:
        piece.held = False
        self._pieces.remove(piece)
        self._low = min(self._low, piece.begin // self.chunk_bytes)
        for chunk in range(piece.begin // self.chunk_bytes, -(-piece.end // self.chunk_bytes)):
            if self._range_of_chunk.get(chunk) is piece:
                del self._range_of_chunk[chunk]
        elapsed = self._clock() - piece.since
        if piece.position > piece.begin and elapsed > 0:
            self._rates[piece.source] = (piece.position - piece.begin) / elapsed

    def _chunks(self, piece: ByteRange) -> range:
        return range(piece.position // self.chunk_bytes, -(-piece.end // self.chunk_bytes))

    # -- bytes (from threads)

    def write(self, piece: ByteRange, data: bytes | memoryview) -> int:
        """Append received bytes. Returns how many bytes are still wanted; 0: stop. Raises OSError.

        Bytes beyond the end of the claim, or for a claim that was released, are dropped.
        """
        rest = memoryview(data)
        while rest:
            with self._changed:
                if not piece.held or not self._open:
                    return 0
                begin = piece.position
                end = min(piece.end, begin + len(rest), self.span(begin // self.chunk_bytes)[1])
                if begin == end:
                    return 0
                known = self.has(begin // self.chunk_bytes)  # completed by another source, perhaps verified
                piece.writing = end
            try:
                if not known:
                    _write(self._file, rest[: end - begin], begin)
            except BaseException:
                piece.writing = begin
                raise
            with self._changed:
                piece.position, piece.last_data = end, self._clock()
                if not known:
                    self._record_arrival(end, end - begin, piece.source)
            rest = rest[end - begin :]
        return piece.end - piece.position if piece.held else 0

    def write_chunk(self, source: str, chunk: int, data: bytes | memoryview, chunk_source: str | None = None) -> None:
        """Write a whole chunk, in any order, whichever source has claimed it. Raises OSError.

        `chunk_source`: id of the peer that claims its digest, if any; `data` is then a buffer of `buffers`, which is
        returned to them. A source uses either this or `write`: its piece continues behind the chunks it has written.
        """
        begin, end = self.span(chunk)
        if len(data) != end - begin:
            raise ValueError(f"chunk {chunk} has {end - begin} bytes, not {len(data)}")
        with self._changed:
            wanted = self._open and not self.has(chunk) and chunk not in self._writing_chunks
            if wanted:
                self._writing_chunks.add(chunk)
        try:
            if wanted:
                _write(self._file, memoryview(data), begin)
        except BaseException:
            self._writing_chunks.discard(chunk)
            raise
        with self._changed:
            piece = self._range_of_chunk.get(chunk)
            mine = piece if piece is not None and piece.source == source else None
            if wanted:
                self._writing_chunks.discard(chunk)
                self._record_arrival(end, end - begin, source)
            # If another source writes the chunk too, it is unknown whose bytes the file has: no peer is named for it.
            if chunk_source is not None and wanted and mine is not None:
                self._chunk_sources[chunk] = chunk_source
                self.buffers.keep(chunk, memoryview(data))
            elif chunk_source is not None:
                self.buffers.release(memoryview(data))
            while mine and mine.position < mine.end and self.has(mine.position // self.chunk_bytes):
                mine.position = mine.writing = min(mine.end, self.span(mine.position // self.chunk_bytes)[1])
                mine.last_data, mine.buffered = self._clock(), 0

    def note_buffered(self, piece: ByteRange, buffered: int) -> None:
        """Record `buffered` received bytes that cannot be written yet: the source is not silent."""
        with self._changed:
            piece.buffered, piece.last_data = buffered, self._clock()

    def chunk_source(self, chunk: int) -> str | None:
        """The id of the peer that claims the digest of the arrived chunk, if any."""
        with self._changed:
            return self._chunk_sources.get(chunk)

    def discard_chunk(self, chunk: int) -> None:
        """Discard a wrong chunk, so that it is downloaded again. Raises OSError."""
        with self._changed:
            self.discards += 1
            self._forget_chunk(chunk)

    def reject_chunk(self, chunk: int) -> None:
        """Discard a chunk that does not match `expected`, and record the peer that claimed it. Raises OSError."""
        with self._changed:
            if (chunk_source := self._chunk_sources.get(chunk)) is not None:
                self._rejected.append((chunk, chunk_source))
            self._forget_chunk(chunk)

    def take_rejections(self) -> list[tuple[int, str]]:
        """Chunks rejected since the last call, with the ids of the peers that claimed them."""
        with self._changed:
            rejected, self._rejected = self._rejected, []
        return rejected

    def checkpoint(self) -> None:
        """Flush arrived bytes to disk, so that they survive a power failure. Blocks for long. Raises OSError."""
        with self._changed:
            snapshot = self._table.snapshot()
        flush(self._file)
        with self._changed:
            self._table.flushed(snapshot)
        self._table.sync()

    def close(self) -> None:
        """Close the file, which stays on disk. Idempotent."""
        with self._changed:
            if self._open:
                self._open = False
                self._table.close()
                os.close(self._file)

    def _forget_chunk(self, chunk: int) -> None:
        whole, have = self.has(chunk), self._table[chunk]
        self._table[chunk] = 0
        self._chunk_sources.pop(chunk, None)
        if (buffer := self.buffers.take_kept(chunk)) is not None:
            self.buffers.release(buffer)
        self._whole -= whole
        self._arrived -= have
        self._first, self._low = min(self._first, chunk), min(self._low, chunk)
        self._notify_waiters()

    def _record_arrival(self, end: int, count: int, source: str) -> None:
        """Record that `count` bytes before `end`, inside one chunk, are in the file."""
        chunk = (end - 1) // self.chunk_bytes
        begin = chunk * self.chunk_bytes
        had = self._table[chunk]
        self.by_source[source] += count
        if not end - count - begin <= had < end - begin:
            return
        self._table[chunk] = end - begin
        self._arrived += end - begin - had
        if self.has(chunk):
            self._whole += 1
        self._find_first()
        self._changed.notify_all()
        if self.on_arrival is not None:
            self.on_arrival(self._arrived)
        if self.complete:
            self._notify_waiters()

    def _find_first(self) -> None:
        while self._first < self.count and self.has(self._first):
            self._first += 1

    def _notify_waiters(self) -> None:
        for loop, future in self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_set_result, future)
        self._waiting = []


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def state_path(path: Path) -> Path:
    """Path of the resume table of the partial file at `path`."""
    return path.with_suffix(".state")


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
