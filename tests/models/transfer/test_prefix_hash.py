"""Hashing of a file while it arrives."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from meshllm.models.transfer.partial_file import PartialFile
from meshllm.models.transfer.prefix_hash import PrefixDigests, _PrefixReader, first_difference, hash_arriving
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
def partial(tmp_path: Path) -> Iterator[PartialFile]:
    made = PartialFile(tmp_path / "file.part", len(CONTENT), SHA256, chunk_bytes=CHUNK)
    yield made
    made.close()


@asynccontextmanager
async def followed(partial: PartialFile) -> AsyncIterator[asyncio.Task[PrefixDigests]]:
    """With a hashing thread."""
    owner = Owner("test", on_error=lambda name, error: None)
    try:
        async with asyncio.timeout(30):
            yield owner.start(
                in_thread(lambda stop: hash_arriving(stop, partial, lambda done: None), "follow"), "follow"
            )
    finally:
        await owner.close()


def put(partial: PartialFile, *chunks: int, uploader: str | None = None, data: bytes | None = None) -> None:
    """Write these chunks, correct ones unless `data` is given."""
    for chunk in chunks:
        begin, end = partial.span(chunk)
        partial.claim("source", 1, lambda free, chunk=chunk: free == chunk)  # type: ignore[misc]
        room = partial.buffers.take()[: end - begin]
        room[:] = CONTENT[begin:end] if data is None else data
        partial.write_chunk("source", chunk, room, uploader)


async def until_missing(partial: PartialFile, chunk: int) -> None:
    """Wait until the chunk is missing again."""
    while partial.has(chunk):
        await partial.changed(1.0, complete=not partial.complete)


@pytest.mark.parametrize("expected", [None, RIGHT.chunks])
async def test_hash_arriving_reads_each_byte_once_in_any_order(partial: PartialFile, expected: bytes | None) -> None:
    partial.expected = expected
    async with followed(partial) as reading:
        put(partial, 3, 5, 0, 1, 4, 2)
        assert await reading == RIGHT
    assert partial.take_rejections() == []


async def test_hash_arriving_rejects_a_wrong_chunk_before_the_file_is_complete(partial: PartialFile) -> None:
    partial.expected = RIGHT.chunks
    async with followed(partial) as reading:
        put(partial, 1, uploader="liar", data=WRONG)
        put(partial, 0, 2, uploader="honest")
        await until_missing(partial, 1)
        assert partial.take_rejections() == [(1, "liar")]
        assert partial.has(0)
        assert partial.has(2)
        put(partial, 1, uploader="liar", data=WRONG)
        await until_missing(partial, 1)
        assert partial.take_rejections() == [(1, "liar")]
        put(partial, 1, 3, 4, 5)
        assert await reading == RIGHT


async def test_hash_arriving_retries_a_chunk_without_claiming_peer(partial: PartialFile) -> None:
    partial.expected = RIGHT.chunks
    async with followed(partial) as reading:
        for chunk in (0, 3):
            put(partial, chunk, data=WRONG)
            put(partial, *range(chunk))
            await until_missing(partial, chunk)
        put(partial, *range(6))
        assert await reading == RIGHT
    assert partial.take_rejections() == []


async def test_hash_arriving_discards_a_list_after_two_mismatches(partial: PartialFile) -> None:
    false = CONTENT[:CHUNK] + WRONG + CONTENT[2 * CHUNK :]
    partial.expected = digests_of(false)
    async with followed(partial) as reading:
        put(partial, 0, 1, 2, 3, 4, 5)
        await until_missing(partial, 1)
        put(partial, 1)
        assert await reading == RIGHT


async def test_hash_arriving_restarts_where_a_new_list_differs(partial: PartialFile) -> None:
    false = CONTENT[:CHUNK] + WRONG + CONTENT[2 * CHUNK :]
    partial.expected = digests_of(false)
    async with followed(partial) as reading:
        put(partial, 0, 2, 3, 4, uploader="one")
        put(partial, 1, uploader="two", data=WRONG)
        put(partial, 5, uploader="three", data=WRONG[:500])
        await until_missing(partial, 5)
        assert partial.take_rejections() == [(5, "three")]
        partial.expected = RIGHT.chunks
        await until_missing(partial, 1)
        assert partial.take_rejections() == [(1, "two")]
        put(partial, 1, 5)
        assert await reading == RIGHT


def test_reader_does_not_judge_a_chunk_by_a_list_that_was_replaced(partial: PartialFile) -> None:
    """A right peer sends the last chunk while the list of wrong ones is withdrawn: it must not be banned for it."""
    false = CONTENT[:CHUNK] + WRONG + CONTENT[2 * CHUNK :]
    partial.expected = digests_of(false)[:-32] + digests_of(CONTENT)[-32:]
    put(partial, 0, uploader="liar")
    put(partial, 1, uploader="liar", data=WRONG)
    put(partial, 2, 3, 4, uploader="liar")
    descriptor = os.open(partial.path, os.O_RDONLY)
    try:
        reader = _PrefixReader(partial, descriptor)
        reader.restart_if_changed()
        for _ in range(5):
            reader.read()
            reader.check_chunk()
        assert reader.chunk == 5, "the false list fits what its peers sent"
        put(partial, 5, uploader="honest")
        reader.read()
        partial.expected = digests_of(CONTENT)
        reader.check_chunk()
        assert partial.take_rejections() == []
        reader.restart_if_changed()
        for _ in range(2):
            reader.read()
            reader.check_chunk()
        assert partial.take_rejections() == [(1, "liar")]
        put(partial, 1, uploader="honest")
        while reader.chunk < partial.count:
            reader.read()
            reader.check_chunk()
        assert reader.result() == RIGHT
    finally:
        os.close(descriptor)


async def test_hash_arriving_rereads_discarded_chunks(partial: PartialFile) -> None:
    async with followed(partial) as reading:
        put(partial, 0, data=WRONG)
        put(partial, 1, 2, 3, 4)
        partial.discard_chunk(0)
        put(partial, 0, 5)
        assert await reading == RIGHT


async def test_hash_arriving_raises_when_the_file_is_truncated(partial: PartialFile) -> None:
    put(partial, 0, 1, 2, 3, 4, 5)
    with partial.path.open("rb+") as file:
        file.truncate(10)
    async with followed(partial) as reading:
        with pytest.raises(OSError, match="shorter"):
            await reading


def test_first_difference_finds_the_first_differing_chunk() -> None:
    one, other = digests_of(CONTENT), digests_of(CONTENT[: 3 * CHUNK] + WRONG)
    assert first_difference(one, one) == 6
    assert first_difference(one[: len(other)], other) == 3
