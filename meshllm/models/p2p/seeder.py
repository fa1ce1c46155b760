"""The uploading end of file tunnels: serves verified files by sha256, within the upload limit.

Invariants: what one peer can make this node hold or do is bounded; the limit is asked for before every piece; a file
that changed since it was listed is not sent any further.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

from meshllm.errors import BadMessage
from meshllm.tasks import Owner
from meshllm.util.rate_limiter import RateLimiter
from meshllm.util.rate_meter import RateMeter
from meshllm.wire.mesh import files as w

log = logging.getLogger(__name__)

# Bytes read and sent at a time: from the page cache directly, from disk in a thread and more at once. Each connection
# holds one piece being sent and one being read.
PIECE_BYTES: Final = 256 << 10
DISK_PIECE_BYTES: Final = 1 << 20
# With an upload limit, a piece takes this many seconds of it, so that the flow is even and no downloader takes waiting
# for a stall; but each piece costs a wake-up, so pieces are not smaller than SMALL_PIECE_BYTES.
PACE_SECONDS: Final = 1 / 32
SMALL_PIECE_BYTES: Final = 16 << 10
# Connections served at once, in all and per peer (which may download several files at once).
MAX_UPLOADS: Final = 32
MAX_UPLOADS_PER_PEER: Final = 6
# Unanswered requests per connection; our downloader has three.
MAX_REQUESTS: Final = 16
# A connection without requests is closed after this many seconds.
IDLE_SECONDS: Final = 120.0
# Seconds after which a refused peer should ask again.
BUSY_WAIT_SECONDS: Final = 5
READERS: Final = 4


@dataclass(frozen=True, slots=True)
class SeedFile:
    """A file that can be uploaded; `modified_ns`: its modification time when it was verified."""

    path: Path
    listing: w.ChunkListing
    modified_ns: int


class SeedIndex(Protocol):
    """Looks up files and models that can be uploaded."""

    async def lookup(self, sha256: str) -> SeedFile | w.FileRefusal:
        """The file with that sha256."""

    async def find(self, name: str) -> w.FoundModels | w.FileRefusal:
        """The complete and verified models of that name."""


@dataclass(frozen=True, slots=True)
class PeerUpload:
    """One upload: peer (node id in hexadecimal), file, bytes sent, current bytes/s, "lane" or "quic"."""

    peer: str
    file: str
    sent: int
    rate: float
    transport: str


class Seeder:
    """Serves downloading peers. `rate` returns the current upload limit in bytes/s (None: unlimited)."""

    def __init__(
        self, index: SeedIndex, rate: Callable[[], float | None], clock: Callable[[], float] | None = None
    ) -> None:
        self.index = index
        self.rate = rate
        self.clock = clock or asyncio.get_running_loop().time
        self.rate_limiter = RateLimiter()
        self.owner = Owner("uploads")
        self.readers = ThreadPoolExecutor(READERS, "uploads")
        self.uploaded_bytes = 0
        self._connections: dict[_UploadConnection, None] = {}

    def serve(self, peer: str) -> asyncio.BaseProtocol:
        """The protocol for a tunnel that the authenticated `peer` (node id in hexadecimal) opened."""
        return _UploadConnection(self, peer)

    def uploads(self) -> list[PeerUpload]:
        """The uploads in progress."""
        now = self.clock()
        return [connection.facts(now) for connection in self._connections if connection.meter.total]

    async def close(self) -> None:
        """Close all connections."""
        for connection in list(self._connections):
            connection.abort()
        await self.owner.close()
        self.readers.shutdown(wait=False, cancel_futures=True)

    def admit(self, connection: _UploadConnection) -> bool:
        """Take an upload slot for the connection, until `remove`; False if none is free."""
        of_peer = sum(other.peer == connection.peer for other in self._connections)
        if len(self._connections) >= MAX_UPLOADS or of_peer >= MAX_UPLOADS_PER_PEER:
            return False
        self._connections[connection] = None
        return True

    def remove(self, connection: _UploadConnection) -> None:
        """Free the connection's slot."""
        self._connections.pop(connection, None)


class _UploadConnection(asyncio.Protocol):
    """One tunnel. Requests are queued, and a task answers them in order."""

    def __init__(self, seeder: Seeder, peer: str) -> None:
        self.peer = peer
        self.meter = RateMeter(seeder.clock())
        self._seeder = seeder
        self._transport: asyncio.Transport | None = None
        self._reader = w.FrameReader(w.place_request)
        self._requests: deque[w.Request | w.UnknownRequest] = deque()
        self._wake = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._seed_file: SeedFile | None = None
        self._file = -1
        self._reading: asyncio.Future[bytes] | None = None
        self._read_ahead = memoryview(b"")  # read and not sent yet, of the current chunk
        self._closed = False

    def facts(self, now: float) -> PeerUpload:
        """The upload as shown in the status."""
        name = self._seed_file.path.name if self._seed_file is not None else ""
        lane = self._transport is not None and self._transport.get_extra_info("ssl_object") is not None
        return PeerUpload(self.peer, name, self.meter.total, self.meter.rate(now), "lane" if lane else "quic")

    # -- received data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._seeder.owner.start(self._serve(), f"to {self.peer[:10]}")

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._requests.append(w.decode_request(frame))
                if len(self._requests) > MAX_REQUESTS:
                    raise BadMessage(f"more than {MAX_REQUESTS} requests at once")
        except BadMessage as error:
            log.warning("Closed the upload connection of %s: %s", self.peer[:10], error.message)
            self.abort()
        self._wake.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._wake.set()
        self._writable.set()

    def abort(self) -> None:
        """Close the connection at once."""
        self._closed = True
        self._requests.clear()
        if self._transport is not None:
            self._transport.abort()
        self._wake.set()
        self._writable.set()

    # -- answering

    async def _serve(self) -> None:
        admitted = self._seeder.admit(self)
        try:
            while (request := await self._next()) is not None:
                if admitted:
                    await self._answer(request)
                else:
                    self._send(w.FileRefusal(w.FileRefusalReason.BUSY, wait=BUSY_WAIT_SECONDS))
        except (OSError, BadMessage) as error:  # TimeoutError: no requests
            log.info("upload connection of %s closed: %s", self.peer[:10], error or "no requests")
        finally:
            self._seeder.remove(self)
            self.abort()
            await self._close_file()

    async def _next(self) -> w.Request | w.UnknownRequest | None:
        """The next request; None if the peer is gone. Raises TimeoutError after IDLE_SECONDS without one."""
        while not self._requests and not self._closed:
            self._wake.clear()
            async with asyncio.timeout(IDLE_SECONDS):
                await self._wake.wait()
        return None if self._closed else self._requests.popleft()

    async def _answer(self, request: w.Request | w.UnknownRequest) -> None:
        match request:
            case w.HaveRequest(sha256):
                await self._send_listing(sha256)
            case w.ChunkRequest(chunk):
                await self._send_chunk(chunk)
            case w.FindRequest(name):
                self._send(await self._seeder.index.find(name))
            case _:
                self._send(w.FileRefusal(w.FileRefusalReason.NOT_UNDERSTOOD))

    def _send(self, answer: w.Answer) -> None:
        if self._transport is not None and not self._closed:
            self._transport.write(w.encode_answer(answer))

    async def _send_listing(self, sha256: str) -> None:
        await self._close_file()
        found = await self._seeder.index.lookup(sha256)
        if isinstance(found, w.FileRefusal):
            self._send(found)
            return
        self._file = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC)
        self._seed_file = found
        self._send(found.listing)

    async def _send_chunk(self, chunk: int) -> None:
        """Send a chunk piece by piece, reading the next one while one is sent. Raises BadMessage and OSError."""
        seed_file, seeder = self._seed_file, self._seeder
        begin = chunk * seed_file.listing.chunk_bytes if seed_file is not None else 0
        if seed_file is None or begin >= seed_file.listing.size:
            raise BadMessage("a chunk number beyond the file's end")
        facts = os.fstat(self._file)
        if (facts.st_size, facts.st_mtime_ns) != (seed_file.listing.size, seed_file.modified_ns):
            self._send(w.FileRefusal(w.FileRefusalReason.CHANGED))
            return
        end = min(begin + seed_file.listing.chunk_bytes, seed_file.listing.size)
        transport = cast(asyncio.Transport, self._transport)
        transport.write(w.header(w.FileFrameKind.CHUNK, chunk, end - begin))
        while begin < end:
            await self._writable.wait()
            limit = seeder.rate()
            data = await self._read(begin, end - begin, _piece_bytes(limit))
            if wait := seeder.rate_limiter.delay(len(data), limit, seeder.clock()):
                await asyncio.sleep(wait)
            if self._closed:
                return
            begin += len(data)
            self.meter.add(len(data), seeder.clock())
            seeder.uploaded_bytes += len(data)
            transport.write(data)

    # -- reading

    async def _read(self, begin: int, rest: int, most: int) -> memoryview:
        """The next bytes of the file, at most `most` of `rest`. Raises OSError, also if the file became shorter."""
        if not self._read_ahead:
            size = min(rest, most)
            data: bytes | bytearray | None = _in_memory(self._file, size, begin)
            if data is None:
                size, loop = min(rest, DISK_PIECE_BYTES), asyncio.get_running_loop()
                self._reading = loop.run_in_executor(self._seeder.readers, os.pread, self._file, size, begin)
                await asyncio.wait([self._reading])  # the thread needs the open file even if this task is cancelled
                data = self._reading.result()
                self._reading = None
            if not data:
                raise OSError("the file has become shorter")
            self._read_ahead = memoryview(data)
        piece, self._read_ahead = self._read_ahead[:most], self._read_ahead[most:]
        return piece

    async def _close_file(self) -> None:
        if self._reading is not None:
            await asyncio.wait([self._reading])
            self._reading = None
        if self._file >= 0:
            os.close(self._file)
        self._file, self._seed_file = -1, None


def _piece_bytes(limit: float | None) -> int:
    """Bytes per piece at that limit."""
    return PIECE_BYTES if limit is None else max(SMALL_PIECE_BYTES, min(PIECE_BYTES, int(limit * PACE_SECONDS)))


def _in_memory(file: int, size: int, begin: int) -> bytearray | None:
    """Bytes that can be read without waiting for the disk; None if that is not possible or unknown."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    data = bytearray(size)
    try:
        count = os.preadv(file, [data], begin, os.RWF_NOWAIT)
    except OSError:  # EAGAIN: it would block; or not supported
        return None
    del data[count:]
    return data or None
