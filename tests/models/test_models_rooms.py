"""Memory for chunks: used again, and never more chunks kept than there may be."""

from __future__ import annotations

from meshllm.models.transfer.buffer_pool import KEPT_CHUNKS, BufferPool


def filled(rooms: BufferPool, number: int) -> memoryview:
    """The start of a room, with these bytes in it."""
    room = rooms.take()[:2]
    room[:] = bytes([number] * 2)
    return room


def test_a_room_is_used_again_whole() -> None:
    rooms = BufferPool(3)
    room = rooms.take()
    assert rooms.take().obj is not room.obj
    rooms.give_back(room[:1])
    again = rooms.take()
    assert again.obj is room.obj
    assert len(again) == 3


def test_a_chunk_is_handed_over_once() -> None:
    rooms = BufferPool(3)
    rooms.keep(7, filled(rooms, 7))
    assert rooms.kept(6) is None
    assert rooms.kept(7) == bytes([7, 7])
    assert rooms.kept(7) is None


def test_what_is_furthest_from_its_turn_is_not_kept() -> None:
    rooms = BufferPool(3)
    chunks = [90, *range(KEPT_CHUNKS)]
    starts = [filled(rooms, chunk) for chunk in chunks]
    for chunk, start in zip(chunks, starts, strict=True):
        rooms.keep(chunk, start)
    assert rooms.kept(90) is None
    assert rooms.take().obj is starts[0].obj
    assert [rooms.kept(chunk) for chunk in range(KEPT_CHUNKS)] == starts[1:]
