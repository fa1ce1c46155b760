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
"""Whether a source has that chunk. It must not call the assembly."""


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
    heard: float = field(init=False)  # when something last came
    coming: int = 0  # bytes that came and are not written yet
    held: bool = True
    writing: int = field(init=False)  # bytes before this place are just being written

    def __post_init__(self) -> None:
        self.position = self.writing = self.begin
        self.heard = self.since


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
        self.spoilt = 0
        """How often bytes were taken back by somebody who does not follow the file (`checking.follow`)."""
        self.heard: Callable[[int], None] | None = None
        """Called, from whichever thread, with the number of bytes that are there whenever it has grown."""
        self._clock = clock
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._table = ResumeTable(state_path(path), sha256, size, chunk_bytes, os.fstat(self._file).st_size)
        except BaseException:
            os.close(self._file)
            raise
        self.rooms = BufferPool(min(chunk_bytes, size))
        self._open = True
        self._arrived = self._table.total()
        self._whole = sum(self.has(chunk) for chunk in range(self.count))
        self._first = 0  # all chunks before it are whole
        self._low = 0  # all chunks before it are whole or held
        self._find_first()
        self._pieces: list[ByteRange] = []
        self._holders: dict[int, ByteRange] = {}
        self._givers: dict[int, str] = {}  # who answers for a chunk, where somebody does
        self._putting: set[int] = set()  # chunks that are just being written by `put`
        self._refuted: list[tuple[int, str]] = []
        self._pace: dict[str, float] = {}  # bytes per second of a source's last piece
        self._news = threading.Condition()
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

    def shares(self) -> tuple[tuple[str, int], ...]:
        """The bytes that each source has given since the assembly was opened."""
        with self._news:
            return tuple(self.by_source.items())

    def has(self, chunk: int) -> bool:
        """Whether the chunk is there whole."""
        return self._table[chunk] == self._table.length(chunk)

    def span(self, chunk: int) -> tuple[int, int]:
        """The places in the file at which the chunk begins and ends."""
        return chunk * self.chunk_bytes, min(self.size, (chunk + 1) * self.chunk_bytes)

    def wait_for_prefix(self, beyond: int, seconds: float) -> int:
        """The prefix, waited for until it is longer than `beyond` bytes, or for so long (in a thread)."""
        with self._news:
            self._news.wait_for(lambda: self.prefix > beyond, seconds)
            return self.prefix

    async def changed(self, within: float | None = LOOK_AGAIN_SECONDS, *, complete: bool = True) -> None:
        """Return when something may be claimed that could not be before, when the file is complete (not `complete`: is
        so no longer), or after `within` seconds: by then another source may have become so slow that it must share."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._news:
            if self.complete is complete:
                return
            self._waiting.append((loop, future))
        try:
            await asyncio.wait([future], timeout=within)
        finally:
            with self._news:
                self._waiting = [item for item in self._waiting if item[1] is not future]

    # -- who fetches what

    def claim(self, source: str, most_chunks: int, accept: Accept | None = None) -> ByteRange | None:
        """A piece for `source` of at most so many chunks, all of them accepted; None: nothing for it to do now.

        `source` is what the bytes are counted under; several connections may share one. Where nothing is free, the
        rest of a slow source's piece is shared. Towards the end the pieces become smaller, so that all end together.
        """
        with self._news:
            span = self._free(most_chunks, accept) or self._shared(source, accept)
            if span is None:
                return None
            piece = ByteRange(source, *span, since=self._clock())
            self._pieces.append(piece)
            for chunk in self._chunks(piece):
                self._holders[chunk] = piece
            return piece

    def give_back(self, piece: ByteRange) -> None:
        """Nobody fetches the rest of this piece any more; what has arrived of it is kept. Idempotent."""
        with self._news:
            if piece.held:
                self._release(piece)
                self._wake()

    def _free(self, most_chunks: int, accept: Accept | None) -> tuple[int, int] | None:
        free = self.count - self._whole - len(self._holders)
        most = max(1, min(most_chunks, free // (2 * len(self._pieces) + 2)))
        while self._low < self.count and not self._is_free(self._low):
            self._low += 1
        for chunk in range(self._low, self.count):
            if self._is_free(chunk) and (accept is None or accept(chunk)):
                break
        else:
            return None
        last = chunk
        while last + 1 < min(self.count, chunk + most) and self._untouched(last + 1, accept):
            last += 1
        return self.span(chunk)[0] + self._table[chunk], self.span(last)[1]

    def _is_free(self, chunk: int) -> bool:
        return chunk not in self._holders and not self.has(chunk)

    def _untouched(self, chunk: int, accept: Accept | None, holder: ByteRange | None = None) -> bool:
        """Whether nothing of it is there, and nobody but `holder` is at it."""
        if self._table[chunk] or self._holders.get(chunk) is not holder:
            return False
        return accept is None or accept(chunk)

    def _shared(self, source: str, accept: Accept | None) -> tuple[int, int] | None:
        """The part of a slow piece that `source` takes from it, beginning with the one that would take longest."""
        now = self._clock()
        slow = [(self._needs(piece, now), piece) for piece in self._pieces if now - piece.since >= GRACE_SECONDS]
        for needs, piece in sorted(slow, key=lambda item: -item[0]):
            if needs <= OPEN_WAIT_SECONDS:
                return None
            span = self._tail(piece, accept) or self._taken_over(source, piece, needs, accept)
            if span is not None:
                return span
        return None

    def _needs(self, piece: ByteRange, now: float) -> float:
        """Seconds until the piece is there, at the pace it has had so far; for ever, if it has fallen silent."""
        done = piece.position + piece.coming - piece.begin
        if done <= 0 or now - piece.heard >= GRACE_SECONDS:
            return float("inf")
        return (piece.end - piece.begin - done) * (now - piece.since) / done

    def _tail(self, piece: ByteRange, accept: Accept | None) -> tuple[int, int] | None:
        """The latter half of the chunks that the piece has not come to yet."""
        at = max(piece.position, piece.writing - 1) // self.chunk_bytes
        last = (piece.end - 1) // self.chunk_bytes
        first = last + 1
        while first - 1 > at + (last - at) // 2 and self._untouched(first - 1, accept, piece):
            first -= 1
        if first > last:
            return None
        end, piece.end = piece.end, self.span(first)[0]
        return piece.end, end

    def _taken_over(self, source: str, piece: ByteRange, needs: float, accept: Accept | None) -> tuple[int, int] | None:
        """The rest of the chunk that the piece is at, if `source` will be done with it in half the time."""
        rest, pace = piece.end - piece.position, self._pace.get(source)
        quick = needs > 2 * rest / pace if pace else needs > 5 * OPEN_WAIT_SECONDS
        ours = accept is None or all(accept(chunk) for chunk in self._chunks(piece))
        if not (quick and ours and rest) or piece.writing > piece.position:
            return None
        span = piece.position, piece.end
        self._release(piece)
        return span

    def _release(self, piece: ByteRange) -> None:
        piece.held = False
        self._pieces.remove(piece)
        self._low = min(self._low, piece.begin // self.chunk_bytes)
        for chunk in range(piece.begin // self.chunk_bytes, -(-piece.end // self.chunk_bytes)):
            if self._holders.get(chunk) is piece:
                del self._holders[chunk]
        elapsed = self._clock() - piece.since
        if piece.position > piece.begin and elapsed > 0:
            self._pace[piece.source] = (piece.position - piece.begin) / elapsed

    def _chunks(self, piece: ByteRange) -> range:
        return range(piece.position // self.chunk_bytes, -(-piece.end // self.chunk_bytes))

    # -- bytes (from threads)

    def write(self, piece: ByteRange, data: bytes | memoryview) -> int:
        """Append what its source sent. Returns how many bytes the piece still wants; 0: stop. Raises OSError.

        What goes beyond the piece's end, or came for a piece that is not held any more, is dropped.
        """
        rest = memoryview(data)
        while rest:
            with self._news:
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
            with self._news:
                piece.position, piece.heard = end, self._clock()
                if not known:
                    self._note(end, end - begin, piece.source)
            rest = rest[end - begin :]
        return piece.end - piece.position if piece.held else 0

    def put(self, source: str, chunk: int, data: bytes | memoryview, giver: str | None = None) -> None:
        """Write a whole chunk, in any order; it is welcome whoever holds it. Raises OSError.

        `giver` is the id of whoever answers for it, if anybody does; `data` is then in one of `rooms`, and goes back.
        A source that puts chunks must not `write` too: its piece goes on behind what it has put.
        """
        begin, end = self.span(chunk)
        if len(data) != end - begin:
            raise ValueError(f"chunk {chunk} has {end - begin} bytes, not {len(data)}")
        with self._news:
            wanted = self._open and not self.has(chunk) and chunk not in self._putting
            if wanted:
                self._putting.add(chunk)
        try:
            if wanted:
                _write(self._file, memoryview(data), begin)
        except BaseException:
            self._putting.discard(chunk)
            raise
        with self._news:
            piece = self._holders.get(chunk)
            mine = piece if piece is not None and piece.source == source else None
            if wanted:
                self._putting.discard(chunk)
                self._note(end, end - begin, source)
            # Where somebody else is at the chunk, too, nobody knows for a moment whose bytes the file has.
            if giver is not None and wanted and mine is not None:
                self._givers[chunk] = giver
                self.rooms.keep(chunk, memoryview(data))
            elif giver is not None:
                self.rooms.give_back(memoryview(data))
            while mine and mine.position < mine.end and self.has(mine.position // self.chunk_bytes):
                mine.position = mine.writing = min(mine.end, self.span(mine.position // self.chunk_bytes)[1])
                mine.heard, mine.coming = self._clock(), 0

    def hear(self, piece: ByteRange, coming: int) -> None:
        """So many bytes of the piece came that cannot be written before more has: its source is not silent."""
        with self._news:
            piece.coming, piece.heard = coming, self._clock()

    def giver(self, chunk: int) -> str | None:
        """The id of whoever answers for the chunk that is there, if anybody does."""
        with self._news:
            return self._givers.get(chunk)

    def spoil(self, chunk: int) -> None:
        """What is there of the chunk is wrong: it is to be fetched again. Raises OSError."""
        with self._news:
            self.spoilt += 1
            self._take_back(chunk)

    def refute(self, chunk: int) -> None:
        """The same, because it does not fit `expected`; whoever answers for it is accused. Raises OSError."""
        with self._news:
            if (giver := self._givers.get(chunk)) is not None:
                self._refuted.append((chunk, giver))
            self._take_back(chunk)

    def accused(self) -> list[tuple[int, str]]:
        """Chunks that were refuted since the last call, and the ids of those who answer for them."""
        with self._news:
            refuted, self._refuted = self._refuted, []
        return refuted

    def checkpoint(self) -> None:
        """Bring what has arrived to the disk, so that a power cut costs nothing of it. Blocks for long. OSError."""
        with self._news:
            snapshot = self._table.snapshot()
        flush(self._file)
        with self._news:
            self._table.flushed(snapshot)
        self._table.sync()

    def close(self) -> None:
        """Not to be used any more; the file stays. Idempotent."""
        with self._news:
            if self._open:
                self._open = False
                self._table.close()
                os.close(self._file)

    def _take_back(self, chunk: int) -> None:
        whole, have = self.has(chunk), self._table[chunk]
        self._table[chunk] = 0
        self._givers.pop(chunk, None)
        if (room := self.rooms.kept(chunk)) is not None:
            self.rooms.give_back(room)
        self._whole -= whole
        self._arrived -= have
        self._first, self._low = min(self._first, chunk), min(self._low, chunk)
        self._wake()

    def _note(self, end: int, count: int, source: str) -> None:
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
        self._news.notify_all()
        if self.heard is not None:
            self.heard(self._arrived)
        if self.complete:
            self._wake()

    def _find_first(self) -> None:
        while self._first < self.count and self.has(self._first):
            self._first += 1

    def _wake(self) -> None:
        for loop, future in self._waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future)
        self._waiting = []


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def state_path(path: Path) -> Path:
    """Where the table of arrivals of the unfinished file at `path` lies."""
    return path.with_suffix(".state")


def _write(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, place)
        data, place = data[written:], place + written
