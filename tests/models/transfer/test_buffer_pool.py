"""The pool of chunk buffers."""

from __future__ import annotations

from meshllm.models.transfer.buffer_pool import KEPT_CHUNKS, BufferPool


def filled(buffers: BufferPool, number: int) -> memoryview:
    """The start of a buffer, with these bytes in it."""
    buffer = buffers.take()[:2]
    buffer[:] = bytes([number] * 2)
    return buffer


def test_take_reuses_a_released_buffer() -> None:
    buffers = BufferPool(3)
    buffer = buffers.take()
    assert buffers.take().obj is not buffer.obj
    buffers.release(buffer[:1])
    again = buffers.take()
    assert again.obj is buffer.obj
    assert len(again) == 3


def test_take_kept_hands_a_chunk_over_once() -> None:
    buffers = BufferPool(3)
    buffers.keep(7, filled(buffers, 7))
    assert buffers.take_kept(6) is None
    assert buffers.take_kept(7) == bytes([7, 7])
    assert buffers.take_kept(7) is None


def test_keep_drops_the_furthest_chunk() -> None:
    buffers = BufferPool(3)
    chunks = [90, *range(KEPT_CHUNKS)]
    starts = [filled(buffers, chunk) for chunk in chunks]
    for chunk, start in zip(chunks, starts, strict=True):
        buffers.keep(chunk, start)
    assert buffers.take_kept(90) is None
    assert buffers.take().obj is starts[0].obj
    assert [buffers.take_kept(chunk) for chunk in range(KEPT_CHUNKS)] == starts[1:]
