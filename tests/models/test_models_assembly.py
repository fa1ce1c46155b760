"""A file put together from several sources: who fetches what, what survives, and what is not believed."""

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
    """Seconds that pass when the test says so."""

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
def assembly(path: Path, clock: Clock) -> Iterator[PartialFile]:
    made = opened(path, clock)
    yield made
    made.close()


def opened(path: Path, clock: Clock | None = None, size: int = SIZE) -> PartialFile:
    return PartialFile(path, size, DIGEST, chunk_bytes=CHUNK, clock=clock or Clock())


def fill(assembly: PartialFile, piece: ByteRange, count: int | None = None) -> int:
    """Write the right bytes, all that the piece wants or `count`."""
    end = piece.end if count is None else piece.position + count
    return assembly.write(piece, CONTENT[piece.position : end])


def fill_all(assembly: PartialFile) -> None:
    while piece := assembly.claim("rest", 4):
        fill(assembly, piece)
        assembly.give_back(piece)


def test_one_source_fetches_all(assembly: PartialFile, path: Path) -> None:
    assert (assembly.count, assembly.arrived, assembly.prefix, assembly.complete) == (11, 0, 0, False)
    fill_all(assembly)
    assert assembly.complete
    assert assembly.prefix == SIZE
    assert assembly.claim("a", 1) is None
    assert path.read_bytes() == CONTENT
    assert assembly.by_source == {"rest": SIZE}


def test_pieces_never_overlap_and_become_smaller(assembly: PartialFile) -> None:
    pieces = []
    while piece := assembly.claim("a", 4):
        pieces.append((piece.begin, piece.end))
    assert pieces[0] == (0, 4 * CHUNK)
    assert [begin for begin, _ in pieces[1:]] == [end for _, end in pieces[:-1]]
    assert pieces[-1] == (10 * CHUNK, SIZE)


def test_only_what_a_source_has_is_claimed(assembly: PartialFile) -> None:
    first = assembly.claim("a", 4, accept=lambda chunk: chunk in (3, 4, 9))
    second = assembly.claim("a", 4, accept=lambda chunk: chunk in (3, 4, 9))
    assert first is not None
    assert second is not None
    assert (first.begin, first.end) == (3 * CHUNK, 5 * CHUNK)
    assert (second.begin, second.end) == (9 * CHUNK, 10 * CHUNK)
    assert assembly.claim("a", 4, accept=lambda chunk: chunk in (3, 4, 9)) is None


def test_what_was_given_back_goes_on_in_the_middle_of_its_chunk(assembly: PartialFile) -> None:
    piece = assembly.claim("a", 2)
    assert piece is not None
    assert fill(assembly, piece, 1300) == 700
    assembly.give_back(piece)
    assembly.give_back(piece)
    assert fill(assembly, piece) == 0  # it is not held any more: nothing is written
    assert assembly.arrived == assembly.prefix == 1300
    again = assembly.claim("b", 1)
    assert again is not None
    assert (again.begin, again.end) == (1300, 2000)
    fill_all(assembly)
    assert not assembly.complete
    fill(assembly, again)
    assert assembly.complete


def test_a_run_ends_before_a_chunk_that_is_there_in_part(assembly: PartialFile) -> None:
    later = assembly.claim("a", 1, accept=lambda chunk: chunk == 2)
    assert later is not None
    fill(assembly, later, 10)
    assembly.give_back(later)
    piece = assembly.claim("a", 4)
    assert piece is not None
    assert (piece.begin, piece.end) == (0, 2 * CHUNK)


def test_bytes_beyond_the_piece_are_dropped(assembly: PartialFile, path: Path) -> None:
    piece = assembly.claim("a", 1)
    assert piece is not None
    assert assembly.write(piece, CONTENT[: 3 * CHUNK]) == 0
    assert assembly.arrived == CHUNK
    assert path.stat().st_size == CHUNK


# -- nobody idles while another crawls


def claim_all(assembly: PartialFile, source: str) -> list[ByteRange]:
    return list(iter(lambda: assembly.claim(source, 4), None))


def test_an_idle_source_takes_half_of_what_a_slow_one_has_before_it(assembly: PartialFile, clock: Clock) -> None:
    slow = assembly.claim("slow", 4)
    assert slow is not None
    rest = claim_all(assembly, "fast")
    fill(assembly, slow, 100)
    for piece in rest:
        fill(assembly, piece)
        assembly.give_back(piece)
    assert assembly.claim("fast", 4) is None  # too early to tell
    clock.now = 2.0
    taken = assembly.claim("fast", 4)
    assert taken is not None
    assert (taken.begin, taken.end, slow.end) == (2 * CHUNK, 4 * CHUNK, 2 * CHUNK)
    assert assembly.write(slow, CONTENT[slow.position : 4 * CHUNK]) == 0  # its connection sends on: that is dropped
    fill(assembly, taken)
    assert assembly.complete
    assert assembly.by_source == {"slow": 2 * CHUNK, "fast": SIZE - 2 * CHUNK}


def test_the_last_chunk_of_a_slow_source_goes_on_with_a_faster_one(assembly: PartialFile, clock: Clock) -> None:
    pieces = claim_all(assembly, "fast")
    slow = pieces.pop()
    slow.source = "slow"
    fill(assembly, slow, 100)
    clock.now = 0.1
    for piece in pieces:
        fill(assembly, piece)
        assembly.give_back(piece)
    assert assembly.claim("fast", 1) is None
    clock.now = 5.0
    assert assembly.claim("fast", 1, accept=lambda chunk: chunk == 0) is None
    taken = assembly.claim("fast", 1)
    assert taken is not None
    assert (taken.begin, taken.end) == (10 * CHUNK + 100, SIZE)
    assert not slow.held
    assert fill(assembly, slow) == 0
    clock.now = 8.0
    fill(assembly, taken, 200)
    assert assembly.claim("slow", 1) is None  # it would take longer than whoever has it now
    fill(assembly, taken)
    assert assembly.complete
    assert assembly.by_source == {"slow": 100, "fast": SIZE - 100}


def test_a_source_that_is_nearly_done_keeps_its_piece(assembly: PartialFile, clock: Clock) -> None:
    pieces = claim_all(assembly, "a")
    clock.now = 10.0
    for piece in pieces:
        fill(assembly, piece, piece.end - piece.begin - 10)
    assert assembly.claim("a", 1) is None
    clock.now = 12.0  # they have fallen silent
    taken = assembly.claim("a", 1)
    assert taken is not None
    assert taken.end - taken.begin == 10


def test_a_source_that_writes_whole_chunks_can_say_that_it_is_at_work(assembly: PartialFile, clock: Clock) -> None:
    mine = assembly.claim("peer", 1)
    assert mine is not None
    for piece in claim_all(assembly, "fast"):
        fill(assembly, piece)
        assembly.give_back(piece)
    for clock.now in (1.0, 2.0, 3.0, 4.0):
        assembly.hear(mine, int(clock.now * CHUNK // 5))
    assert assembly.claim("fast", 1) is None  # it needs but a second more
    clock.now = 6.0
    assert assembly.claim("fast", 1) is not None
    assembly.put("peer", 0, CONTENT[:CHUNK])  # late, and welcome
    assert assembly.complete


# -- whole chunks


def test_whole_chunks_come_in_any_order(assembly: PartialFile, path: Path) -> None:
    piece = assembly.claim("peer", 4)
    assert piece is not None
    for chunk in (2, 0, 3, 1):
        begin, end = assembly.span(chunk)
        assembly.put("peer", chunk, CONTENT[begin:end])
    assert piece.position == piece.end
    assert assembly.prefix == 4 * CHUNK
    assembly.put("peer", 1, bytes(CHUNK))  # it is there: nothing is written
    with pytest.raises(ValueError, match="chunk 10 has 500 bytes"):
        assembly.put("peer", 10, bytes(CHUNK))
    fill_all(assembly)
    assert path.read_bytes() == CONTENT


def test_a_verified_chunk_is_not_written_over(assembly: PartialFile, path: Path) -> None:
    """A peer gives a chunk that the hub is just sending, wrong."""
    theirs = assembly.claim("peer", 1)
    hubs = assembly.claim("hub", 2)
    assert theirs is not None
    assert hubs is not None
    assembly.write(hubs, bytes(10))
    assembly.put("peer", 1, CONTENT[CHUNK : 2 * CHUNK])
    assembly.write(hubs, bytes(CHUNK - 10) + CONTENT[2 * CHUNK : hubs.end])
    assembly.put("peer", 0, CONTENT[:CHUNK])
    assert path.read_bytes() == CONTENT[: hubs.end]
    assert assembly.arrived == hubs.end


def test_only_who_is_alone_at_a_chunk_answers_for_it(assembly: PartialFile) -> None:
    held, other = assembly.claim("peer", 1), assembly.claim("hub", 1)
    assert held is not None
    assert other is not None
    for chunk in (0, 1):
        room = assembly.rooms.take()
        room[:] = CONTENT[chunk * CHUNK : (chunk + 1) * CHUNK]
        assembly.put("peer", chunk, room, "peer's id")
    assert (assembly.giver(0), assembly.giver(1)) == ("peer's id", None)
    assert assembly.rooms.kept(0) == CONTENT[:CHUNK]
    assert assembly.rooms.kept(1) is None
    # What comes again, from whomever, changes nothing.
    again = assembly.rooms.take()
    assembly.put("peer", 0, again, "another's id")
    assert assembly.giver(0) == "peer's id"
    assert assembly.rooms.take().obj is again.obj


def test_a_spoilt_chunk_is_fetched_again(assembly: PartialFile) -> None:
    fill_all(assembly)
    assembly.spoil(4)
    assert not assembly.complete
    assert (assembly.arrived, assembly.prefix, assembly.spoilt) == (SIZE - CHUNK, 4 * CHUNK, 1)
    piece = assembly.claim("a", 4)
    assert piece is not None
    assert (piece.begin, piece.end) == (4 * CHUNK, 5 * CHUNK)
    fill(assembly, piece)
    assert assembly.complete


# -- what survives


def test_what_was_written_is_there_after_any_death(assembly: PartialFile, path: Path) -> None:
    """The file is looked at without closing the first assembly: as a kill leaves it."""
    for chunk, count in ((7, 10), (2, CHUNK), (0, 999)):
        piece = assembly.claim("a", 1, accept=lambda found, chunk=chunk: found == chunk)
        assert piece is not None
        fill(assembly, piece, count)
    again = opened(path)
    assert again.arrived == 10 + CHUNK + 999
    fill_all(again)
    again.close()
    assert path.read_bytes() == CONTENT


def test_after_a_power_cut_only_what_was_flushed_is_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_was_spoilt_stays_so_after_a_power_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(path)
    fill_all(first)
    first.checkpoint()
    first.spoil(3)
    first.close()
    monkeypatch.setattr(resume_table, "_boot", lambda: b"another".ljust(40))
    second = opened(path)
    assert second.arrived == SIZE - CHUNK
    second.close()


def test_a_file_of_an_earlier_version_has_come_from_its_start(path: Path) -> None:
    path.write_bytes(CONTENT[:2300])
    assembly = opened(path)
    assert assembly.arrived == assembly.prefix == 2300
    assembly.close()


@pytest.mark.parametrize("damage", ["empty", "short", "long", "random", "other size", "too much", "unreadable"])
def test_a_damaged_table_is_thrown_away(damage: str, path: Path) -> None:
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


def test_a_file_that_became_shorter_has_less(path: Path) -> None:
    first = opened(path)
    fill_all(first)
    first.close()
    os.truncate(path, 3200)
    second = opened(path)
    assert second.arrived == second.prefix == 3200
    second.close()


@pytest.mark.parametrize("size", [0, 1 << 60])
def test_sizes_that_are_none(size: int, path: Path) -> None:
    with pytest.raises(ValueError, match="chunks"):
        opened(path, size=size)


# -- waiting


async def test_waiting_ends_when_something_is_free_or_all_is_there(assembly: PartialFile) -> None:
    owner = Owner("test")
    pieces = claim_all(assembly, "a")
    waiting = owner.start(assembly.changed(within=60), "wait")
    await asyncio.sleep(0)
    assert not waiting.done()
    assembly.give_back(pieces.pop())
    async with asyncio.timeout(30):
        await waiting
    pieces += claim_all(assembly, "a")
    waiting = owner.start(assembly.changed(within=60), "wait")
    await asyncio.sleep(0)
    for piece in pieces:
        await asyncio.to_thread(fill, assembly, piece)
    async with asyncio.timeout(30):
        await waiting
        await assembly.changed(within=60)  # complete: at once
    await owner.close()


async def test_a_follower_hears_of_a_longer_prefix(assembly: PartialFile) -> None:
    piece = assembly.claim("a", 1)
    assert piece is not None
    owner = Owner("test")
    follower = owner.start(asyncio.to_thread(assembly.wait_for_prefix, 5, 60), "follow")
    fill(assembly, piece, 5)
    fill(assembly, piece, 5)
    async with asyncio.timeout(30):
        assert await follower == 10
    assert assembly.wait_for_prefix(10, 0.0) == 10
    await owner.close()


def test_a_closed_assembly_writes_nothing(path: Path) -> None:
    assembly = opened(path)
    piece = assembly.claim("a", 1)
    assert piece is not None
    assembly.close()
    assembly.close()
    assert fill(assembly, piece) == 0
    assembly.put("peer", 0, CONTENT[:CHUNK])
    assert path.stat().st_size == 0


# -- in any order


@given(st.integers(0, 1 << 32))
def test_in_any_order_and_with_any_deaths_each_byte_is_written_once(seed: int) -> None:
    """Sources come, write a bit, stall, give back, are taken over; now and then all is left as a kill leaves it."""
    rng, clock, written = Random(seed), Clock(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.part"
        assembly, held = opened(path, clock), []
        left = [assembly]
        while not assembly.complete:
            match rng.randrange(10):
                case 0 | 1 | 2:
                    piece = assembly.claim(rng.choice("abc"), rng.randrange(1, 6), rng.choice([None, _even]))
                    held += [piece] if piece else []
                case 3 if held:
                    assembly.give_back(held.pop(rng.randrange(len(held))))
                case 4:
                    clock.now += rng.random() * 3
                case 5 if rng.random() < 0.1:
                    assembly, held = opened(path, clock), []
                    left.append(assembly)
                case _ if held:
                    piece, before = rng.choice(held), assembly.arrived
                    fill(assembly, piece, rng.randrange(1, 1500))
                    written += assembly.arrived - before
            places = sorted((piece.position, piece.end) for piece in held if piece.held)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(places)), f"seed {seed}"
        for each in left:
            each.close()
        assert written == SIZE
        assert path.read_bytes() == CONTENT


def _even(chunk: int) -> bool:
    return chunk % 2 == 0


async def test_many_threads_at_once(path: Path) -> None:
    assembly = PartialFile(path, SIZE, DIGEST, chunk_bytes=CHUNK)

    def work(name: str) -> None:
        rng = Random(name)
        while not assembly.complete:
            piece = assembly.claim(name, rng.randrange(1, 5))
            while piece is not None and rng.random() > 0.1 and fill(assembly, piece, rng.randrange(1, 200)):
                pass
            if piece is not None:
                assembly.give_back(piece)

    async with asyncio.timeout(60):
        await asyncio.gather(*(asyncio.to_thread(work, f"source {number}") for number in range(8)))
    assert sum(assembly.by_source.values()) == SIZE
    assembly.close()
    assert path.read_bytes() == CONTENT  # noqa: ASYNC240
