"""The engine of this node: found or built on demand, with a backoff for workers after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from meshllm.engine.build import builder
from meshllm.errors import MeshError
from meshllm.util.backoff import backoff
from meshllm.util.progress import Progress

# A failed build costs minutes of processor time: between attempts for leases this many seconds pass, doubling.
RETRY_BASE_SECONDS = 5.0
RETRY_CAP_SECONDS = 600.0


class EngineProvider:
    """Builds the engine if it is missing. The core spaces its own attempts; `ensure_spaced` spaces those of workers."""

    def __init__(self) -> None:
        self._error: MeshError | None = None
        self._failures = 0
        self._retry_at = 0.0

    async def ensure(self, report: Callable[[Progress], None]) -> builder.Engine:
        """The engine, built first if it is missing. Raises MeshError."""

        def on_step(step: Progress) -> None:
            report(replace(step, stage=f"engine: {step.stage}"))

        try:
            engine = await builder.ensure(progress=on_step)
        except MeshError as error:
            self._error = error
            delay = backoff(self._failures, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS)
            self._failures += 1
            self._retry_at = asyncio.get_running_loop().time() + delay
            raise
        self._error, self._failures = None, 0
        return engine

    async def ensure_spaced(self, report: Callable[[Progress], None]) -> builder.Engine:
        """The same for a lease. Raises the last error again until the next attempt is due: hosts ask every few
        seconds."""
        if self._error is not None and asyncio.get_running_loop().time() < self._retry_at:
            raise self._error
        return await self.ensure(report)
