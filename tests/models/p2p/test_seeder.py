"""Uploads to peers: invalid requests, limits and rates."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm_rig import CHUNK, FakeSeedIndex, content_of

from meshllm.models.p2p import seeder
from meshllm.models.p2p.peer_connection import STALL_SECONDS
from meshllm.models.p2p.seeder import Seeder
from meshllm.util.rate_limiter import BURST_SECONDS, RateLimiter
from meshllm.wire.mesh import files as w


class Clock:
    """A clock set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Asker:
    """A raw connection to a seeder."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def ask(self, *requests: w.Request) -> None:
        self.writer.write(b"".join(map(w.encode_request, requests)))

    async def frame(self) -> w.FileFrame:
        kind, number, length = w.HEADER.unpack(await self.reader.readexactly(w.HEADER.size))
        return w.FileFrame(kind, number, memoryview(await self.reader.readexactly(length)))

    async def answer(self) -> w.Answer:
        return w.decode_answer(await self.frame())

    async def ended(self) -> bool:
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


class Place:
    """A seeder behind a socket."""

    def __init__(self, uploader: Seeder, port: int) -> None:
        self.uploader = uploader
        self._port = port
        self._askers: list[Asker] = []

    async def asker(self) -> Asker:
        asker = Asker(*await asyncio.open_connection("127.0.0.1", self._port))
        self._askers.append(asker)
        return asker

    async def close(self) -> None:
        for asker in self._askers:
            asker.writer.close()


@asynccontextmanager
async def upload_rig(index: FakeSeedIndex, rate: float | None = None, peer: str = "taker") -> AsyncIterator[Place]:
    """Checks that nothing is left at the end."""
    before = asyncio.all_tasks()
    uploader = Seeder(index, lambda: rate)
    server = await asyncio.get_running_loop().create_server(lambda: uploader.serve(peer), "127.0.0.1", 0)
    place = Place(uploader, server.sockets[0].getsockname()[1])
    try:
        async with asyncio.timeout(30):
            yield place
    finally:
        await place.close()
        await uploader.close()
        server.close()
        await server.wait_closed()
    assert asyncio.all_tasks() <= before


@pytest.fixture
def index() -> FakeSeedIndex:
    return FakeSeedIndex()


async def test_chunks_are_sent_in_the_order_of_the_requests(tmp_path: Path, index: FakeSeedIndex) -> None:
    content = content_of(5)
    sha256 = index.put(tmp_path / "a.gguf", content)
    async with upload_rig(index) as place:
        asker = await place.asker()
        asker.ask(w.HaveRequest(sha256), w.ChunkRequest(4), w.ChunkRequest(0))
        listing = await asker.answer()
        assert isinstance(listing, w.ChunkListing)
        assert listing.size == len(content)
        last, first = await asker.frame(), await asker.frame()
        assert (last.number, bytes(last.body)) == (4, content[4 * CHUNK :])
        assert (first.number, bytes(first.body)) == (0, content[:CHUNK])
        (given,) = place.uploader.uploads()
        assert (given.peer, given.file, given.sent, given.transport) == (
            "taker",
            "a.gguf",
            len(last.body) + CHUNK,
            "quic",
        )
        assert place.uploader.uploaded_bytes == given.sent
        asker.writer.close()


async def test_chunks_are_read_in_a_thread_without_page_cache_information(
    tmp_path: Path, index: FakeSeedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeder, "_in_memory", lambda file, size, begin: None)
    content = content_of(3)
    sha256 = index.put(tmp_path / "a.gguf", content)
    async with upload_rig(index) as place:
        asker = await place.asker()
        asker.ask(w.HaveRequest(sha256), w.ChunkRequest(0), w.ChunkRequest(2))
        await asker.answer()
        assert bytes((await asker.frame()).body) == content[:CHUNK]
        assert bytes((await asker.frame()).body) == content[2 * CHUNK :]


async def test_unknown_file_is_refused_as_absent(index: FakeSeedIndex) -> None:
    async with upload_rig(index) as place:
        asker = await place.asker()
        asker.ask(w.HaveRequest("ab" * 32))
        assert await asker.answer() == w.FileRefusal(w.FileRefusalReason.ABSENT)
        asker.writer.write(w.header(9, 0, 3) + b"new")  # type: ignore[arg-type]
        assert await asker.answer() == w.FileRefusal(w.FileRefusalReason.NOT_UNDERSTOOD)
        # A chunk of no file.
        asker.ask(w.ChunkRequest(0))
        assert await asker.ended()


@pytest.mark.parametrize("chunk", [5, 6, w.MAX_CHUNKS - 1])
async def test_chunk_number_beyond_the_end_closes_the_connection(
    tmp_path: Path, index: FakeSeedIndex, chunk: int
) -> None:
    sha256 = index.put(tmp_path / "a.gguf", content_of(5))
    async with upload_rig(index) as place:
        asker = await place.asker()
        asker.ask(w.HaveRequest(sha256))
        await asker.answer()
        asker.ask(w.ChunkRequest(chunk))
        assert await asker.ended()


@pytest.mark.parametrize("how", ["longer", "touched"])
async def test_changed_file_is_refused(tmp_path: Path, index: FakeSeedIndex, how: str) -> None:
    path = tmp_path / "a.gguf"
    sha256 = index.put(path, content_of(5))
    async with upload_rig(index) as place:
        asker = await place.asker()
        asker.ask(w.HaveRequest(sha256), w.ChunkRequest(0))
        await asker.answer()
        await asker.frame()
        if how == "longer":
            path.write_bytes(path.read_bytes() + b"more")
        else:
            os.utime(path, ns=(1, 1))
        asker.ask(w.ChunkRequest(1))
        assert await asker.answer() == w.FileRefusal(w.FileRefusalReason.CHANGED)


@given(st.binary(min_size=1, max_size=200))
def test_invalid_frames_close_only_their_connection(data: bytes) -> None:
    async def scene() -> None:
        async with upload_rig(FakeSeedIndex()) as place:
            asker = await place.asker()
            asker.writer.write(data)
            asker.writer.write_eof()
            await asker.ended()
            other = await place.asker()
            other.ask(w.HaveRequest("ab" * 32))
            assert await other.answer() == w.FileRefusal(w.FileRefusalReason.ABSENT)

    asyncio.run(scene())


async def test_too_many_requests_close_the_connection(tmp_path: Path, index: FakeSeedIndex) -> None:
    sha256 = index.put(tmp_path / "a.gguf", content_of(5))
    async with upload_rig(index) as place:
        asker = await place.asker()
        asker.ask(w.HaveRequest(sha256), *[w.ChunkRequest(0)] * (2 * seeder.MAX_REQUESTS))
        assert await asker.ended()


async def test_upload_slots_per_peer_are_bounded(tmp_path: Path, index: FakeSeedIndex) -> None:
    sha256 = index.put(tmp_path / "a.gguf", content_of(5))
    async with upload_rig(index) as place:
        askers = [await place.asker() for _ in range(seeder.MAX_UPLOADS_PER_PEER)]
        for asker in askers:
            asker.ask(w.HaveRequest(sha256))
            assert isinstance(await asker.answer(), w.ChunkListing)
        late = await place.asker()
        late.ask(w.HaveRequest(sha256))
        assert await late.answer() == w.FileRefusal(w.FileRefusalReason.BUSY, wait=seeder.BUSY_WAIT_SECONDS)
        askers[0].writer.write_eof()
        assert await askers[0].ended()
        next_one = await place.asker()
        next_one.ask(w.HaveRequest(sha256))
        assert isinstance(await next_one.answer(), w.ChunkListing)


async def test_idle_connection_is_closed(index: FakeSeedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeder, "IDLE_SECONDS", 0.01)
    async with upload_rig(index) as place:
        assert await (await place.asker()).ended()


async def test_slow_reader_uses_little_memory(tmp_path: Path, index: FakeSeedIndex) -> None:
    """Bytes sent to a peer that does not read are bounded by the socket buffers."""
    content = bytes(64 << 20)
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    listing = w.ChunkListing(len(content), 16 << 20, bytes(4 * 32))
    index.files["ab" * 32] = seeder.SeedFile(path, listing, path.stat().st_mtime_ns)
    async with upload_rig(index) as place:
        asker = await place.asker()
        asker.ask(w.HaveRequest("ab" * 32), *[w.ChunkRequest(chunk) for chunk in range(4)])
        await asker.answer()
        other = await place.asker()
        for _ in range(20):  # others are answered meanwhile
            other.ask(w.HaveRequest("cd" * 32))
            assert await other.answer() == w.FileRefusal(w.FileRefusalReason.ABSENT)
        assert place.uploader.uploaded_bytes < len(content) // 2


# -- the rate, by counting


@given(
    st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 0.5)), min_size=1, max_size=60),
    st.floats(1e3, 1e9),
)
def test_rate_limiter_never_exceeds_the_rate(pieces: list[tuple[int, float]], rate: float) -> None:
    throttle, now = RateLimiter(), 1000.0
    begin, sent, largest = now, 0, 0
    for count, pause in pieces:
        now += pause
        now += throttle.delay(count, rate, now)
        sent, largest = sent + count, max(largest, count)
        # At any time: what the rate gives, what may be saved up, and the piece that is just let out.
        assert sent <= (now - begin) * rate + BURST_SECONDS * rate + largest + 1


def test_rate_limiter_reaches_the_rate() -> None:
    throttle, now = RateLimiter(), 0.0
    for _ in range(1000):
        now += throttle.delay(1000, 1e5, now)
    assert now == pytest.approx(10.0, rel=0.01)


def test_rate_limiter_can_be_lifted_and_set_again() -> None:
    throttle = RateLimiter()
    assert [throttle.delay(1 << 30, None, 5.0) for _ in range(3)] == [0.0] * 3
    assert throttle.delay(1000, 1000.0, 5.0) == 0.0
    assert throttle.delay(1000, 1000.0, 5.0) == pytest.approx(1.0)
    assert throttle.delay(1000, None, 5.0) == 0.0


def test_rate_limiter_shares_the_rate_in_turn() -> None:
    """Each waits for its own piece, in order; none starves."""
    throttle = RateLimiter()
    waits = [throttle.delay(100, 100.0, 0.0) for _ in range(4)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(3.0, abs=BURST_SECONDS)


@pytest.mark.parametrize("rate", [1e5, 1e6, 8e6, 1e9])
def test_rate_limiter_delays_stay_below_the_stall_timeout(rate: float) -> None:
    """With all slots in use and the lowest rate."""
    piece = seeder._piece_bytes(rate)
    assert seeder.SMALL_PIECE_BYTES <= piece <= seeder.PIECE_BYTES
    assert seeder.MAX_UPLOADS * piece / rate < STALL_SECONDS / 2


async def test_upload_limit_holds_for_all_connections_together(
    tmp_path: Path, index: FakeSeedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only sleeping advances the clock."""
    content = content_of(32)
    sha256 = index.put(tmp_path / "a.gguf", content)
    clock, real_sleep = Clock(), asyncio.sleep

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        await real_sleep(0)

    async with upload_rig(index, rate=100_000.0) as place:
        place.uploader.clock = clock
        monkeypatch.setattr(seeder.asyncio, "sleep", sleep)
        begin = clock.now
        askers = [await place.asker() for _ in range(2)]
        for asker in askers:
            asker.ask(w.HaveRequest(sha256), *[w.ChunkRequest(chunk) for chunk in range(10)])
        for asker in askers:
            await asker.answer()
            for _ in range(10):
                await asker.frame()
        largest = seeder._piece_bytes(100_000.0)
        assert place.uploader.uploaded_bytes == 2 * 10 * CHUNK
        assert place.uploader.uploaded_bytes <= (clock.now - begin + BURST_SECONDS) * 100_000.0 + largest
        assert clock.now > begin
