"""Counts of draft tokens, read from the engines after requests.

Invariants: an engine is asked at most once a second, and only after requests; a question to an engine that stops is
cancelled, because an engine does not stop while it answers. Counts only grow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from meshllm.core.memory.speculation import DraftCounts, DraftSource
from meshllm.core.snapshot import ServerPhase, Snapshot
from meshllm.tasks import Owner

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0


class DraftStats:
    """The counts by model. `ask` reads the counts of the engine at a socket; it raises OSError, TimeoutError or
    ValueError. `changed` is called after a change."""

    def __init__(
        self, ask: Callable[[str], Awaitable[DraftCounts]], changed: Callable[[], None], pause: float = PAUSE_SECONDS
    ) -> None:
        self._ask = ask
        self._changed = changed
        self._pause = pause
        self._owner = Owner("draft stats")
        self._engines: dict[str, str] = {}
        self._now: dict[str, DraftCounts] = {}
        self._before: dict[str, DraftCounts] = {}
        self._questions: dict[str, asyncio.Task[DraftCounts | None]] = {}
        self._asking = False
        self._again = False

    def publish(self, snapshot: Snapshot) -> None:
        """Take over the running engines from `snapshot`."""
        engines = {
            model.name: facts.endpoint
            for model in snapshot.models
            # For a split the time of a token is needed, to compare it with the forecast.
            if (facts := model.server_facts) is not None
            and model.server is not ServerPhase.STOPPING
            and (facts.speculation.source is not DraftSource.NONE or model.split is not None)
        }
        for model, socket in self._engines.items():
            if engines.get(model) != socket and model in self._now:
                self._before[model] = self._before.get(model, DraftCounts()) + self._now.pop(model)
        self._engines = engines
        for socket, question in self._questions.items():
            if socket not in engines.values():
                question.cancel()

    def refresh(self) -> None:
        """Ask the engines soon: requests began or ended."""
        self._again = True
        if self._engines and not self._asking:
            self._asking = True
            self._owner.start(self._keep_asking(), "ask the engines")

    def counts(self) -> Mapping[str, DraftCounts]:
        """The counts by model."""
        models = {*self._before, *self._now, *self._engines}
        return {
            model: self._before.get(model, DraftCounts()) + self._now.get(model, DraftCounts())
            for model in sorted(models)
        }

    def current(self) -> Mapping[str, tuple[str, DraftCounts]]:
        """The socket of each running engine, and its counts since its own start, by model."""
        return {model: (self._engines[model], counts) for model, counts in self._now.items() if model in self._engines}

    async def close(self) -> None:
        """Stop asking."""
        self._engines = {}
        await self._owner.close()

    async def _keep_asking(self) -> None:
        try:
            while self._again:
                self._again = False
                for model, socket in list(self._engines.items()):
                    if self._engines.get(model) == socket:
                        await self._ask_one(model, socket)
                await asyncio.sleep(self._pause)
        finally:
            self._asking = False

    async def _ask_one(self, model: str, socket: str) -> None:
        question = self._questions[socket] = self._owner.start(self._counts_of(socket), f"ask {model}")
        try:
            await asyncio.wait((question,))
        finally:
            del self._questions[socket]
        counts = None if question.cancelled() else question.result()
        # A new process counts from zero.
        if counts is not None and self._engines.get(model) == socket and self._now.get(model) != counts:
            self._now[model] = counts
            self._changed()

    async def _counts_of(self, socket: str) -> DraftCounts | None:
        """The counts of the engine; None if it does not answer."""
        try:
            return await self._ask(socket)
        except (OSError, TimeoutError, ValueError) as error:
            log.debug("the engine at %s does not report its draft tokens: %r", socket, error)
            return None
