"""A file that is read while it arrives: what is refuted, who is accused, and when a list is not believed any more."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from meshllm.models.transfer.partial_file import PartialFile
from meshllm.models.transfer.prefix_hash import PrefixDigests, first_difference, follow
from meshllm.tasks import Owner
from meshllm.util.threads import in_thread

CHUNK = 1000
CONTENT = Random(3).randbytes(5 * CHUNK + 500)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG = bytes(CHUNK)


def digests_of(content: bytes) -> bytes:
    return b"".join(hashlib.sha256(content[: at + CHUNK]).digest() for at in range(0, len(content), CHUNK))


RIGHT = PrefixDigests(SHA256, digests_of(CONTENT))


@pytest.fixture
def assembly(tmp_path: Path) -> Iterator[PartialFile]:
    made = PartialFile(tmp_path / "file.part", len(CONTENT), SHA256, chunk_bytes=CHUNK)
    yield made
    made.close()


@asynccontextmanager
async def followed(assembly: PartialFile) -> AsyncIterator[asyncio.Task[PrefixDigests]]:
    """With a thread that reads what arrives."""
    owner = Owner("test", on_error=lambda name, error: None)
    try:
        async with asyncio.timeout(30):
            yield owner.start(in_thread(lambda stop: follow(stop, assembly, lambda done: None), "follow"), "follow")
    finally:
        await owner.close()


def put(assembly: PartialFile, *chunks: int, giver: str | None = None, data: bytes | None = None) -> None:
    """Put these chunks, right ones unless there is other `data`."""
    for chunk in chunks:
        begin, end = assembly.span(chunk)
        assembly.claim("source", 1, lambda free, chunk=chunk: free == chunk)  # type: ignore[misc]
        room = assembly.rooms.take()[: end - begin]
        room[:] = CONTENT[begin:end] if data is None else data
        assembly.put("source", chunk, room, giver)


async def until_missing(assembly: PartialFile, chunk: int) -> None:
    """Until the chunk is to be fetched again."""
    while assembly.has(chunk):
        await assembly.changed(1.0, complete=not assembly.complete)


@pytest.mark.parametrize("expected", [None, RIGHT.chunks])
async def test_in_any_order_it_is_read_once(assembly: PartialFile, expected: bytes | None) -> None:
    assembly.expected = expected
    async with followed(assembly) as reading:
        put(assembly, 3, 5, 0, 1, 4, 2)
        assert await reading == RIGHT
    assert assembly.accused() == []


async def test_who_put_a_wrong_chunk_is_accused_before_the_file_is_complete(assembly: PartialFile) -> None:
    assembly.expected = RIGHT.chunks
    async with followed(assembly) as reading:
        put(assembly, 1, giver="liar", data=WRONG)
        put(assembly, 0, 2, giver="honest")
        await until_missing(assembly, 1)
        assert assembly.accused() == [(1, "liar")]
        assert assembly.has(0)
        assert assembly.has(2)
        put(assembly, 1, giver="liar", data=WRONG)
        await until_missing(assembly, 1)
        assert assembly.accused() == [(1, "liar")]
        put(assembly, 1, 3, 4, 5)
        assert await reading == RIGHT


async def test_what_nobody_answers_for_has_a_second_chance(assembly: PartialFile) -> None:
    assembly.expected = RIGHT.chunks
    async with followed(assembly) as reading:
        for chunk in (0, 3):
            put(assembly, chunk, data=WRONG)
            put(assembly, *range(chunk))
            await until_missing(assembly, chunk)
        put(assembly, *range(6))
        assert await reading == RIGHT
    assert assembly.accused() == []


async def test_a_list_that_is_contradicted_twice_is_not_believed(assembly: PartialFile) -> None:
    false = CONTENT[:CHUNK] + WRONG + CONTENT[2 * CHUNK :]
    assembly.expected = digests_of(false)
    async with followed(assembly) as reading:
        put(assembly, 0, 1, 2, 3, 4, 5)
        await until_missing(assembly, 1)
        put(assembly, 1)
        assert await reading == RIGHT


async def test_another_list_is_heeded_from_where_it_differs(assembly: PartialFile) -> None:
    false = CONTENT[:CHUNK] + WRONG + CONTENT[2 * CHUNK :]
    assembly.expected = digests_of(false)
    async with followed(assembly) as reading:
        put(assembly, 0, 2, 3, 4, giver="one")
        put(assembly, 1, giver="two", data=WRONG)
        put(assembly, 5, giver="three", data=WRONG[:500])
        await until_missing(assembly, 5)
        assert assembly.accused() == [(5, "three")]
        assembly.expected = RIGHT.chunks
        await until_missing(assembly, 1)
        assert assembly.accused() == [(1, "two")]
        put(assembly, 1, 5)
        assert await reading == RIGHT


async def test_what_was_spoilt_meanwhile_is_read_again(assembly: PartialFile) -> None:
    async with followed(assembly) as reading:
        put(assembly, 0, data=WRONG)
        put(assembly, 1, 2, 3, 4)
        assembly.spoil(0)
        put(assembly, 0, 5)
        assert await reading == RIGHT


async def test_a_file_that_became_shorter_is_an_error(assembly: PartialFile) -> None:
    put(assembly, 0, 1, 2, 3, 4, 5)
    with assembly.path.open("rb+") as file:
        file.truncate(10)
    async with followed(assembly) as reading:
        with pytest.raises(OSError, match="shorter"):
            await reading


def test_where_lists_differ() -> None:
    one, other = digests_of(CONTENT), digests_of(CONTENT[: 3 * CHUNK] + WRONG)
    assert first_difference(one, one) == 6
    assert first_difference(one[: len(other)], other) == 3
