"""Memory for chunks on their way, and chunks that are still in it when their turn to be read comes.

Law: whoever reads a file that is arriving gets from here only what stands in the file, too. Memory is used again,
because new memory costs as much as filling it; of what is kept here there is never more than KEPT_CHUNKS. Everything
may be called from any thread; nothing blocks.
"""

from __future__ import annotations

import threading
from typing import Final

# Chunks come nearly in order: some three of each giver are under way. What is further from its turn is read from the
# file, which costs a tenth of hashing it.
KEPT_CHUNKS: Final = 8


class BufferPool:
    """Of `size` bytes each."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[memoryview] = []
        self._kept: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """One that nobody uses. Whoever cannot give it back may forget it."""
        with self._lock:
            return self._free.pop() if self._free else memoryview(bytearray(self._size))

    def release(self, start: memoryview) -> None:
        """Nobody uses the room that begins so any more."""
        with self._lock:
            self._free.append(memoryview(start.obj))

    def keep(self, chunk: int, data: memoryview) -> None:
        """The chunk stands in the file as it does here, in a room that is not its taker's any more."""
        with self._lock:
            self._kept[chunk] = data
            far = self._kept.pop(max(self._kept)) if len(self._kept) > KEPT_CHUNKS else None
        if far is not None:
            self.release(far)

    def take_kept(self, chunk: int) -> memoryview | None:
        """The bytes of a chunk, if they were kept; their room is the caller's now."""
        with self._lock:
            return self._kept.pop(chunk, None)
