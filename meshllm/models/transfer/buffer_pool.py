"""Reusable chunk buffers, and chunks that are kept in memory until they are hashed. Thread-safe; never blocks.

Buffers are reused because new memory costs as much as filling it. At most KEPT_CHUNKS chunks are kept.
"""

from __future__ import annotations

import threading
from typing import Final

# Chunks arrive nearly in order, about three per peer at a time. A chunk further ahead is read from the file again,
# which costs a tenth of hashing it.
KEPT_CHUNKS: Final = 8


class BufferPool:
    """Pool of reusable `size`-byte chunk buffers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[memoryview] = []
        self._kept: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """An unused buffer. One that is never released is only lost to the pool."""
        with self._lock:
            return self._free.pop() if self._free else memoryview(bytearray(self._size))

    def release(self, start: memoryview) -> None:
        """Return a buffer to the pool; `start` may be a slice of its beginning."""
        with self._lock:
            self._free.append(memoryview(start.obj))

    def keep(self, chunk: int, data: memoryview) -> None:
        """Keep the content of a chunk that is in the file as well; the pool owns the buffer from now on."""
        with self._lock:
            self._kept[chunk] = data
            far = self._kept.pop(max(self._kept)) if len(self._kept) > KEPT_CHUNKS else None
        if far is not None:
            self.release(far)

    def take_kept(self, chunk: int) -> memoryview | None:
        """The content of a kept chunk, if any; the caller owns the buffer from now on."""
        with self._lock:
            return self._kept.pop(chunk, None)
