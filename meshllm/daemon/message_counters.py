"""Counts of the mesh messages that this node sends and receives, for the metrics."""

from __future__ import annotations

from collections import Counter


class MessageCounters:
    """`messages` by direction ("sent", "received") and message type; `bytes` by direction."""

    def __init__(self) -> None:
        self.messages: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[str] = Counter()
        self.rate_limited = 0

    def count(self, direction: str, message: object, size: int) -> None:
        """A message of `size` bytes was sent or received."""
        self.messages[direction, type(message).__name__] += 1
        self.bytes[direction] += size
