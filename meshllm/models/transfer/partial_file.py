"""A file that is being put together out of what any number of sources send at once.

Law: every missing byte is fetched by one source at a time, whatever has arrived is kept, and no source idles while
another crawls. What is in the file is only a claim until it was read (`checking.py`).

The file is cut into chunks; of each, what has arrived is a run of bytes from the chunk's start. A source claims a piece
(the rest of a chunk, and untouched chunks behind it), writes it in order, and gives it back. Everything may be called
from any thread; `write` and `put`, which block, inside `with stop:`, so that nothing is written for who was cancelled.
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
"""Bytes per chunk: what is claimed, verified and named by digest. A kilobyte of digests for each 128 MB."""

# A piece is left alone for so long, in seconds, because connecting and a slow start say nothing of its source's speed.
GRACE_SECONDS: Final = 2.0
# Whoever will be done with its piece within so many seconds keeps it.
OPEN_WAIT_SECONDS: Final = 1.0
# A source that has nothing to do looks again after so many seconds, because others become slow without a word.
LOOK_AGAIN_SECONDS: Final = 1.0

Accept = Callable[[int], bool]
"""Whether a source has that chunk. It must not call the partial."""


@dataclass(slots=True, eq=False)
class ByteRange:
    """A run of missing bytes that one source fetches: from `position`, which grows, to `end`, which may come down.

    `held` becomes False when it was given back, or given to a faster source: then what still comes is not wanted.
    """

    source: str
    begin: int
    end: int
    since: float
    position: int = field(init=False)
    last_data: float = field(init=False)  # when something last came
    buffered: int = 0  # bytes that came and are not written yet
    held: bool = True
    writing: int = field(init=False)  # bytes before this place are just being written

    def __post_init__(self) -> None:
        self.position = self.writing = self.begin
        self.last_data = self.since


class PartialFile:
    """The unfinished file at `path`, with its table of arrivals beside it. One process at a time may work on it.

    `clock` gives seconds. The constructor raises OSError; what cannot be believed of an earlier run is forgotten.
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
        """What others say the digests of `checking.Digests.chunks` are; set by whoever fetches from peers. A claim."""
        self.discards = 0
        """How often bytes were taken back by somebody who does not follow the file (`checking.follow`)."""
        self.on_arrival: Callable[[int], None] | None = None
        """Called, from whichever thread, with the number of bytes that are there whenever it has grown."""
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
        self._first = 0  # all chunks before it are whole
        self._low = 0  # all chunks before it are whole or held
        self._find_first()
        self._pieces: list[ByteRange] = []
        self._range_of_chunk: dict[int, ByteRange] = {}
        self._chunk_sources: dict[int, str] = {}  # who answers for a chunk, where somebody does
        self._writing_chunks: set[int] = set()  # chunks that are just being written by `put`
        self._rejected: list[tuple[int, str]] = []
        self._rates: dict[str, float] = {}  # bytes per second of a source's last piece
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # -- what is there

    @property
    def count(self) -> int:
        """The number of chunks."""
        return len(self._table)

    @property
    def arrived(self) -> int:
        """Bytes that are there, from whichever start of the program."""
        return self._arrived

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived; it is not verified by that."""
        return self._arrived == self.size

    @property
    def prefix(self) -> int:
        """Bytes that have arrived from the file's start without a hole."""
        first = self._first
        return self.size if first == self.count else first * self.chunk_bytes + self._table[first]

    def source_bytes(self) -> tuple[tuple[str, int], ...]:
        """The bytes that each source has given since the partial was opened."""
        with self._changed:
            return tuple(self.by_source.items())

    def has(self, chunk: int) -> bool:
        """Whether the chunk is there whole."""
        return self._table[chunk] == self._table.length(chunk)

    def span(self, chunk: int) -> tuple[int, int]:
        """The places in the file at which the chunk begins and ends."""
        return chunk * self.chunk_bytes, min(self.size, (chunk + 1) * self.chunk_bytes)

    def wait_for_prefix(self, beyond: int, seconds: float) -> int:
        """The prefix, waited for until it is longer than `beyond` bytes, or for so long (in a thread)."""
        with self._changed:
            self._changed.wait_for(lambda: self.prefix > beyond, seconds)
            return self.prefix

    async def changed(self, within: float | None = LOOK_AGAIN_SECONDS, *, complete: bool = True) -> None:
        """Return when something may be claimed that could not be before, when the file is complete (not `complete`: is
        so no longer), or after `within` seconds: by then another source may have become so slow that it must share."""
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
        """A piece for `source` of at most so many chunks, all of them accepted; None: nothing for it to do now.

        `source` is what the bytes are counted under; several connections may share one. Where nothing is free, the
        rest of a slow source's piece is shared. Towards the end the pieces become smaller, so that all end together.
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
        """Nobody fetches the rest of this piece any more; what has arrived of it is kept. Idempotent."""
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
        """Whether nothing of it is there, and nobody but `holder` is at it."""
        if self._table[chunk] or self._range_of_chunk.get(chunk) is not holder:
            return False
        return accept is None or accept(chunk)

    def _from_slow_source(self, source: str, accept: Accept | None) -> tuple[int, int] | None:
        """The part of a slow piece that `source` takes from it, beginning with the one that would take longest."""
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
        """Seconds until the piece is there, at the rate it has had so far; for ever, if it has fallen silent."""
        done = piece.position + piece.buffered - piece.begin
        if done <= 0 or now - piece.last_data >= GRACE_SECONDS:
            return float("inf")
        return (piece.end - piece.begin - done) * (now - piece.since) / done

    def _split_tail(self, piece: ByteRange, accept: Accept | None) -> tuple[int, int] | None:
        """The latter half of the chunks that the piece has not come to yet."""
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
        """The rest of the chunk that the piece is at, if `source` will be done with it in half the time."""
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
        """Append what its source sent. Returns how many bytes the piece still wants; 0: stop. Raises OSError.

        What goes beyond the piece's end, or came for a piece that is not held any more, is dropped.
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
                known = self.has(begin // self.chunk_bytes)  # whole meanwhile, and perhaps verified
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
            # Where somebody else is at the chunk, too, nobody knows for a moment whose bytes the file has.
            if chunk_source is not None and wanted and mine is not None:
                self._chunk_sources[chunk] = chunk_source
                self.buffers.keep(chunk, memoryview(data))
            elif chunk_source is not None:
                self.buffers.release(memoryview(data))
            while mine and mine.position < mine.end and self.has(mine.position // self.chunk_bytes):
                mine.position = mine.writing = min(mine.end, self.span(mine.position // self.chunk_bytes)[1])
                mine.last_data, mine.buffered = self._clock(), 0

    def note_buffered(self, piece: ByteRange, buffered: int) -> None:
        """So many bytes of the piece came that cannot be written before more has: its source is not silent."""
        with self._changed:
            piece.buffered, piece.last_data = buffered, self._clock()

    def chunk_source(self, chunk: int) -> str | None:
        """The id of whoever answers for the chunk that is there, if anybody does."""
        with self._changed:
            return self._chunk_sources.get(chunk)

    def discard_chunk(self, chunk: int) -> None:
        """What is there of the chunk is wrong: it is to be fetched again. Raises OSError."""
        with self._changed:
            self.discards += 1
            self._forget_chunk(chunk)

    def reject_chunk(self, chunk: int) -> None:
        """The same, because it does not fit `expected`; whoever answers for it is accused. Raises OSError."""
        with self._changed:
            if (chunk_source := self._chunk_sources.get(chunk)) is not None:
                self._rejected.append((chunk, chunk_source))
            self._forget_chunk(chunk)

    def take_rejections(self) -> list[tuple[int, str]]:
        """Chunks that were rejected since the last call, and the ids of those who answer for them."""
        with self._changed:
            rejected, self._rejected = self._rejected, []
        return rejected

    def checkpoint(self) -> None:
        """Bring what has arrived to the disk, so that a power cut costs nothing of it. Blocks for long. OSError."""
        with self._changed:
            snapshot = self._table.snapshot()
        flush(self._file)
        with self._changed:
            self._table.flushed(snapshot)
        self._table.sync()

    def close(self) -> None:
        """Not to be used any more; the file stays. Idempotent."""
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
        """Bytes up to `end`, inside one chunk, are in the file."""
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
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_set_result, future)
        self._waiting = []


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def state_path(path: Path) -> Path:
    """Where the table of arrivals of the unfinished file at `path` lies."""
    return path.with_suffix(".state")


def _write(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, place)
        data, place = data[written:], place + written
