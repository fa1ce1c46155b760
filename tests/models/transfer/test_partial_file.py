"""A partial file: claims of sources, resume, and damaged tables."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.models.transfer import resume_table
from meshllm.models.transfer.partial_file import ByteRange, PartialFile, state_path
from meshllm.tasks import Owner

CHUNK = 1000
SIZE = 10 * CHUNK + 500
DIGEST = "ab" * 32
CONTENT = Random(1).randbytes(SIZE)


class Clock:
    """A clock set by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.part"


@pytest.fixture
def partial(path: Path, clock: Clock) -> Iterator[PartialFile]:
    made = opened(path, clock)
    yield made
    made.close()


def opened(path: Path, clock: Clock | None = None, size: int = SIZE) -> PartialFile:
    return PartialFile(path, size, DIGEST, chunk_bytes=CHUNK, clock=clock or Clock())


def fill(partial: PartialFile, piece: ByteRange, count: int | None = None) -> int:
    """Write the right bytes, all that the piece wants or `count`."""
    end = piece.end if count is None else piece.position + count
    return partial.write(piece, CONTENT[piece.position : end])


def fill_all(partial: PartialFile) -> None:
    while piece := partial.claim("rest", 4):
        fill(partial, piece)
        partial.release(piece)


def test_claim_one_source_fetches_everything(partial: PartialFile, path: Path) -> None:
    assert (partial.count, partial.arrived, partial.prefix, partial.complete) == (11, 0, 0, False)
    fill_all(partial)
    assert partial.complete
    assert partial.prefix == SIZE
    assert partial.claim("a", 1) is None
    assert path.read_bytes() == CONTENT
    assert partial.by_source == {"rest": SIZE}


def test_claim_ranges_never_overlap_and_shrink_towards_the_end(partial: PartialFile) -> None:
    pieces = []
    while piece := partial.claim("a", 4):
        pieces.append((piece.begin, piece.end))
    assert pieces[0] == (0, 4 * CHUNK)
    assert [begin for begin, _ in pieces[1:]] == [end for _, end in pieces[:-1]]
    assert pieces[-1] == (10 * CHUNK, SIZE)


def test_claim_only_accepted_chunks(partial: PartialFile) -> None:
    first = partial.claim("a", 4, accept=lambda chunk: chunk in (3, 4, 9))
    second = partial.claim("a", 4, accept=lambda chunk: chunk in (3, 4, 9))
    assert first is not None
    assert second is not None
    assert (first.begin, first.end) == (3 * CHUNK, 5 * CHUNK)
    assert (second.begin, second.end) == (9 * CHUNK, 10 * CHUNK)
    assert partial.claim("a", 4, accept=lambda chunk: chunk in (3, 4, 9)) is None


def test_claim_resumes_a_released_range_inside_its_chunk(partial: PartialFile) -> None:
    piece = partial.claim("a", 2)
    assert piece is not None
    assert fill(partial, piece, 1300) == 700
    partial.release(piece)
    partial.release(piece)
    assert fill(partial, piece) == 0  # it is not held any more: nothing is written
    assert partial.arrived == partial.prefix == 1300
    again = partial.claim("b", 1)
    assert again is not None
    assert (again.begin, again.end) == (1300, 2000)
    fill_all(partial)
    assert not partial.complete
    fill(partial, again)
    assert partial.complete


def test_claim_ends_before_a_partly_arrived_chunk(partial: PartialFile) -> None:
    later = partial.claim("a", 1, accept=lambda chunk: chunk == 2)
    assert later is not None
    fill(partial, later, 10)
    partial.release(later)
    piece = partial.claim("a", 4)
    assert piece is not None
    assert (piece.begin, piece.end) == (0, 2 * CHUNK)


def test_write_drops_bytes_beyond_the_range(partial: PartialFile, path: Path) -> None:
    piece = partial.claim("a", 1)
    assert piece is not None
    assert partial.write(piece, CONTENT[: 3 * CHUNK]) == 0
    assert partial.arrived == CHUNK
    assert path.stat().st_size == CHUNK


# -- nobody idles while another crawls


def claim_all(partial: PartialFile, source: str) -> list[ByteRange]:
    return list(iter(lambda: partial.claim(source, 4), None))


def test_claim_idle_source_gets_half_of_a_slow_sources_range(partial: PartialFile, clock: Clock) -> None:
    slow = partial.claim("slow", 4)
    assert slow is not None
    rest = claim_all(partial, "fast")
    fill(partial, slow, 100)
    for piece in rest:
        fill(partial, piece)
        partial.release(piece)
    assert partial.claim("fast", 4) is None  # too early to tell
    clock.now = 2.0
    taken = partial.claim("fast", 4)
    assert taken is not None
    assert (taken.begin, taken.end, slow.end) == (2 * CHUNK, 4 * CHUNK, 2 * CHUNK)
    assert partial.write(slow, CONTENT[slow.position : 4 * CHUNK]) == 0  # its connection sends on: that is dropped
    fill(partial, taken)
    assert partial.complete
    assert partial.by_source == {"slow": 2 * CHUNK, "fast": SIZE - 2 * CHUNK}


def test_claim_faster_source_takes_over_the_last_chunk(partial: PartialFile, clock: Clock) -> None:
    pieces = claim_all(partial, "fast")
    slow = pieces.pop()
    slow.source = "slow"
    fill(partial, slow, 100)
    clock.now = 0.1
    for piece in pieces:
        fill(partial, piece)
        partial.release(piece)
    assert partial.claim("fast", 1) is None
    clock.now = 5.0
    assert partial.claim("fast", 1, accept=lambda chunk: chunk == 0) is None
    taken = partial.claim("fast", 1)
    assert taken is not None
    assert (taken.begin, taken.end) == (10 * CHUNK + 100, SIZE)
    assert not slow.held
    assert fill(partial, slow) == 0
    clock.now = 8.0
    fill(partial, taken, 200)
    assert partial.claim("slow", 1) is None  # it would take longer than whoever has it now
    fill(partial, taken)
    assert partial.complete
    assert partial.by_source == {"slow": 100, "fast": SIZE - 100}


def test_claim_leaves_a_range_that_is_nearly_done(partial: PartialFile, clock: Clock) -> None:
    pieces = claim_all(partial, "a")
    clock.now = 10.0
    for piece in pieces:
        fill(partial, piece, piece.end - piece.begin - 10)
    assert partial.claim("a", 1) is None
    clock.now = 12.0  # they have fallen silent
    taken = partial.claim("a", 1)
    assert taken is not None
    assert taken.end - taken.begin == 10


def test_note_buffered_keeps_a_source_from_counting_as_silent(partial: PartialFile, clock: Clock) -> None:
    mine = partial.claim("peer", 1)
    assert mine is not None
    for piece in claim_all(partial, "fast"):
        fill(partial, piece)
        partial.release(piece)
    for clock.now in (1.0, 2.0, 3.0, 4.0):
        partial.note_buffered(mine, int(clock.now * CHUNK // 5))
    assert partial.claim("fast", 1) is None  # it needs but a second more
    clock.now = 6.0
    assert partial.claim("fast", 1) is not None
    partial.write_chunk("peer", 0, CONTENT[:CHUNK])  # late, and welcome
    assert partial.complete


# -- whole chunks


def test_write_chunk_accepts_any_order(partial: PartialFile, path: Path) -> None:
    piece = partial.claim("peer", 4)
    assert piece is not None
    for chunk in (2, 0, 3, 1):
        begin, end = partial.span(chunk)
        partial.write_chunk("peer", chunk, CONTENT[begin:end])
    assert piece.position == piece.end
    assert partial.prefix == 4 * CHUNK
    partial.write_chunk("peer", 1, bytes(CHUNK))  # it is there: nothing is written
    with pytest.raises(ValueError, match="chunk 10 has 500 bytes"):
        partial.write_chunk("peer", 10, bytes(CHUNK))
    fill_all(partial)
    assert path.read_bytes() == CONTENT


def test_write_chunk_does_not_overwrite_a_verified_chunk(partial: PartialFile, path: Path) -> None:
    """A peer sends a wrong chunk that the hub is sending too."""
    theirs = partial.claim("peer", 1)
    hubs = partial.claim("hub", 2)
    assert theirs is not None
    assert hubs is not None
    partial.write(hubs, bytes(10))
    partial.write_chunk("peer", 1, CONTENT[CHUNK : 2 * CHUNK])
    partial.write(hubs, bytes(CHUNK - 10) + CONTENT[2 * CHUNK : hubs.end])
    partial.write_chunk("peer", 0, CONTENT[:CHUNK])
    assert path.read_bytes() == CONTENT[: hubs.end]
    assert partial.arrived == hubs.end


def test_chunk_source_is_known_only_without_a_second_writer(partial: PartialFile) -> None:
    held, other = partial.claim("peer", 1), partial.claim("hub", 1)
    assert held is not None
    assert other is not None
    for chunk in (0, 1):
        room = partial.buffers.take()
        room[:] = CONTENT[chunk * CHUNK : (chunk + 1) * CHUNK]
        partial.write_chunk("peer", chunk, room, "peer's id")
    assert (partial.chunk_source(0), partial.chunk_source(1)) == ("peer's id", None)
    assert partial.buffers.take_kept(0) == CONTENT[:CHUNK]
    assert partial.buffers.take_kept(1) is None
    # What comes again, from whomever, changes nothing.
    again = partial.buffers.take()
    partial.write_chunk("peer", 0, again, "another's id")
    assert partial.chunk_source(0) == "peer's id"
    assert partial.buffers.take().obj is again.obj


def test_discard_chunk_makes_it_claimable_again(partial: PartialFile) -> None:
    fill_all(partial)
    partial.discard_chunk(4)
    assert not partial.complete
    assert (partial.arrived, partial.prefix, partial.discards) == (SIZE - CHUNK, 4 * CHUNK, 1)
    piece = partial.claim("a", 4)
    assert piece is not None
    assert (piece.begin, piece.end) == (4 * CHUNK, 5 * CHUNK)
    fill(partial, piece)
    assert partial.complete


# -- what survives


def test_resume_after_a_killed_process_keeps_every_written_byte(partial: PartialFile, path: Path) -> None:
    """Opened without closing the first one, as after kill -9."""
    for chunk, count in ((7, 10), (2, CHUNK), (0, 999)):
        piece = partial.claim("a", 1, accept=lambda found, chunk=chunk: found == chunk)
        assert piece is not None
        fill(partial, piece, count)
    again = opened(path)
    assert again.arrived == 10 + CHUNK + 999
    fill_all(again)
    again.close()
    assert path.read_bytes() == CONTENT


def test_resume_after_a_power_failure_keeps_only_flushed_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(path)
    piece = first.claim("a", 4)
    assert piece is not None
    fill(first, piece, 1500)
    first.checkpoint()
    fill(first, piece, 1000)
    first.close()
    opened(path).close()  # the same run of the machine: opening it proves nothing about the disk
    monkeypatch.setattr(resume_table, "_boot", lambda: b"another".ljust(40))
    second = opened(path)
    assert second.arrived == 1500
    second.close()


def test_resume_after_a_power_failure_does_not_restore_discarded_chunks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(path)
    fill_all(first)
    first.checkpoint()
    first.discard_chunk(3)
    first.close()
    monkeypatch.setattr(resume_table, "_boot", lambda: b"another".ljust(40))
    second = opened(path)
    assert second.arrived == SIZE - CHUNK
    second.close()


def test_resume_of_an_earlier_versions_file_starts_after_its_prefix(path: Path) -> None:
    path.write_bytes(CONTENT[:2300])
    partial = opened(path)
    assert partial.arrived == partial.prefix == 2300
    partial.close()


@pytest.mark.parametrize("damage", ["empty", "short", "long", "random", "other size", "too much", "unreadable"])
def test_resume_discards_a_damaged_table(damage: str, path: Path) -> None:
    first = opened(path)
    fill_all(first)
    first.close()
    state = state_path(path)
    data = state.read_bytes()
    size = SIZE
    if damage == "unreadable":
        state.unlink()
        state.mkdir()
        with pytest.raises(OSError, match="directory"):
            opened(path)
        return
    if damage == "other size":
        size = SIZE - CHUNK
    else:
        state.write_bytes(
            {
                "empty": b"",
                "short": data[:-1],
                "long": data + b"x",
                "random": os.urandom(len(data)),
                "too much": data[:-4] + b"\xff" * 4,
            }[damage]
        )
    second = opened(path, size=size)
    assert second.arrived == 0
    fill_all(second)
    second.close()
    assert path.read_bytes() == CONTENT


def test_resume_of_a_truncated_file_counts_less(path: Path) -> None:
    first = opened(path)
    fill_all(first)
    first.close()
    os.truncate(path, 3200)
    second = opened(path)
    assert second.arrived == second.prefix == 3200
    second.close()


@pytest.mark.parametrize("size", [0, 1 << 60])
def test_resume_table_rejects_invalid_sizes(size: int, path: Path) -> None:
    with pytest.raises(ValueError, match="chunks"):
        opened(path, size=size)


# -- waiting


async def test_changed_returns_when_a_chunk_is_free_or_the_file_complete(partial: PartialFile) -> None:
    owner = Owner("test")
    pieces = claim_all(partial, "a")
    waiting = owner.start(partial.changed(within=60), "wait")
    await asyncio.sleep(0)
    assert not waiting.done()
    partial.release(pieces.pop())
    async with asyncio.timeout(30):
        await waiting
    pieces += claim_all(partial, "a")
    waiting = owner.start(partial.changed(within=60), "wait")
    await asyncio.sleep(0)
    for piece in pieces:
        await asyncio.to_thread(fill, partial, piece)
    async with asyncio.timeout(30):
        await waiting
        await partial.changed(within=60)  # complete: at once
    await owner.close()


async def test_wait_for_prefix_returns_when_the_prefix_grows(partial: PartialFile) -> None:
    piece = partial.claim("a", 1)
    assert piece is not None
    owner = Owner("test")
    follower = owner.start(asyncio.to_thread(partial.wait_for_prefix, 5, 60), "follow")
    fill(partial, piece, 5)
    fill(partial, piece, 5)
    async with asyncio.timeout(30):
        assert await follower == 10
    assert partial.wait_for_prefix(10, 0.0) == 10
    await owner.close()


def test_write_after_close_writes_nothing(path: Path) -> None:
    partial = opened(path)
    piece = partial.claim("a", 1)
    assert piece is not None
    partial.close()
    partial.close()
    assert fill(partial, piece) == 0
    partial.write_chunk("peer", 0, CONTENT[:CHUNK])
    assert path.stat().st_size == 0


# -- in any order


@given(st.integers(0, 1 << 32))
def test_random_orders_and_crashes_write_each_byte_once(seed: int) -> None:
    """Sources write, stall, release, are taken over; now and then the process is killed."""
    rng, clock, written = Random(seed), Clock(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.part"
        partial, held = opened(path, clock), []
        left = [partial]
        while not partial.complete:
            match rng.randrange(10):
                case 0 | 1 | 2:
                    piece = partial.claim(rng.choice("abc"), rng.randrange(1, 6), rng.choice([None, _even]))
                    held += [piece] if piece else []
                case 3 if held:
                    partial.release(held.pop(rng.randrange(len(held))))
                case 4:
                    clock.now += rng.random() * 3
                case 5 if rng.random() < 0.1:
                    partial, held = opened(path, clock), []
                    left.append(partial)
                case _ if held:
                    piece, before = rng.choice(held), partial.arrived
                    fill(partial, piece, rng.randrange(1, 1500))
                    written += partial.arrived - before
            places = sorted((piece.position, piece.end) for piece in held if piece.held)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(places)), f"seed {seed}"
        for each in left:
            each.close()
        assert written == SIZE
        assert path.read_bytes() == CONTENT


def _even(chunk: int) -> bool:
    return chunk % 2 == 0


async def test_many_threads_write_concurrently(path: Path) -> None:
    partial = PartialFile(path, SIZE, DIGEST, chunk_bytes=CHUNK)

    def work(name: str) -> None:
        rng = Random(name)
        while not partial.complete:
            piece = partial.claim(name, rng.randrange(1, 5))
            while piece is not None and rng.random() > 0.1 and fill(partial, piece, rng.randrange(1, 200)):
                pass
            if piece is not None:
                partial.release(piece)

    async with asyncio.timeout(60):
        await asyncio.gather(*(asyncio.to_thread(work, f"source {number}") for number in range(8)))
    assert sum(partial.by_source.values()) == SIZE
    partial.close()
    assert path.read_bytes() == CONTENT  # noqa: ASYNC240
