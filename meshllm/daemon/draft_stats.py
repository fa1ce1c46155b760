"""What becomes of the tokens that the engines here guess ahead, asked of them after requests.

Law: nobody is asked while nothing is served, and no engine more often than once a second; one that does not answer
changes nothing, and one that is to end is not asked, nor waited for: it does not end while somebody waits for its
answer. Counts only grow: what a process had guessed when it ended is kept.
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
    """The counts. `ask` gets an engine's own, by its socket; it raises OSError, TimeoutError or ValueError. `changed`
    is called when there is something new."""

    def __init__(
        self, ask: Callable[[str], Awaitable[DraftCounts]], changed: Callable[[], None], pause: float = PAUSE_SECONDS
    ) -> None:
        self._ask = ask
        self._changed = changed
        self._pause = pause
        self._owner = Owner("acceptance")
        self._engines: dict[str, str] = {}
        self._now: dict[str, DraftCounts] = {}
        self._before: dict[str, DraftCounts] = {}
        self._questions: dict[str, asyncio.Task[DraftCounts | None]] = {}
        self._asking = False
        self._again = False

    def publish(self, snapshot: Snapshot) -> None:
        """Which engines there are now."""
        engines = {
            model.name: facts.endpoint
            for model in snapshot.models
            # Of a split, how long a token takes is wanted too, to hold it against the forecast.
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
        """Requests began or ended: ask the engines, now or after the pause."""
        self._again = True
        if self._engines and not self._asking:
            self._asking = True
            self._owner.start(self._keep_asking(), "ask the engines")

    def counts(self) -> Mapping[str, DraftCounts]:
        """What is known, by model."""
        models = {*self._before, *self._now, *self._engines}
        return {
            model: self._before.get(model, DraftCounts()) + self._now.get(model, DraftCounts())
            for model in sorted(models)
        }

    async def close(self) -> None:
        """Ask nobody any more."""
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
        question = self._questions[socket] = self._owner.start(self._guesses_of(socket), f"ask {model}")
        try:
            await asyncio.wait((question,))
        finally:
            del self._questions[socket]
        guesses = None if question.cancelled() else question.result()
        # A later process counts from nothing again.
        if guesses is not None and self._engines.get(model) == socket and self._now.get(model) != guesses:
            self._now[model] = guesses
            self._changed()

    async def _guesses_of(self, socket: str) -> DraftCounts | None:
        """What the engine says, None where it says nothing."""
        try:
            return await self._ask(socket)
        except (OSError, TimeoutError, ValueError) as error:
            log.debug("the engine at %s does not say how well it guesses: %r", socket, error)
            return None
