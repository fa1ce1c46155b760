"""Waits for work of the blackboard that must go on when its caller goes away."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from meshllm.errors import BoardOff

STOPPING: Final = "This node is stopping."

T = TypeVar("T")


async def shielded(task: asyncio.Task[T]) -> T:
    """The result of `task`, which goes on if the caller is cancelled. Raises BoardOff if the node stops it."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise BoardOff(STOPPING) from None
        raise
