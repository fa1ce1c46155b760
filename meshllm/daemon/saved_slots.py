"""Keeps the computed prompts of one engine process over its restarts: saved when it is idle and before it stops,
restored into the next one.

Invariants: nothing is saved once the process has answered a guest, because a file does not tell whose prompt it has. A
slot is restored only while it is empty; a request waits for AHEAD_SECONDS and one file at most. What fails costs the
saved prompts, never the process or a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from meshllm.core.memory.estimate import HALF, checkpoint_bytes
from meshllm.core.memory.model_shape import ModelShape
from meshllm.core.memory.speculation import DraftSource
from meshllm.core.snapshot import Purpose
from meshllm.daemon.drains import Drains
from meshllm.daemon.prompt_store import PromptStore, SavedPrompt
from meshllm.engine.processes import slots
from meshllm.engine.processes.llama_server import ServerPlan
from meshllm.engine.processes.slots import SlotState
from meshllm.util.threads import in_thread

log = logging.getLogger(__name__)

# Fewer tokens are computed again sooner than a user notices.
LEAST_TOKENS = 256
# After so long without a request the prompts are written (seconds). A slot of an agent is some hundred megabytes to
# gigabytes: they are not written after every answer.
IDLE_SECONDS = 300.0
# A request that waits until its model is loaded would mostly be the next turn of what was saved, and would take a slot
# before that is restored: the process counts as ready so much later at most (seconds). A file takes some 0.1 s.
AHEAD_SECONDS = 2.0
# A stop waits so long for the files (seconds).
STOP_SECONDS = 4.0
# For one file; only for what is broken.
FILE_SECONDS = 60.0
# What a file has beside the numbers of the tokens.
OVERHEAD = 1.05

_ERRORS = (OSError, TimeoutError, ValueError)


def unsupported(shape: ModelShape, plan: ServerPlan) -> str:
    """Why the slots of a process cannot be saved; "" if they can."""
    if plan.purpose is not Purpose.GENERATE:
        return "it is no chat model"
    if plan.workers:
        return "other nodes hold a part of its prompts"
    if plan.projector is not None:
        return "its prompts may have images"
    if plan.speculation.source is DraftSource.DRAFT:
        return "its draft model's prompts are not saved"
    if checkpoint_bytes(shape):
        return "the state of its recurrent or sliding-window layers cannot be rewound"
    return ""


def token_bytes(shape: ModelShape) -> int:
    """Bytes that a file has for each token of a prompt."""
    return sum(HALF * (layer.keys + layer.values) for layer in shape.layers if not layer.idle)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A model as one process serves it. `key`: of its folder in the store; `bytes_per_token`: of a file."""

    name: str
    generation: int
    path: Path
    key: str
    bytes_per_token: int


class SavedSlots:
    """The slots of one process at `socket`, which reads and writes files in `folder`."""

    def __init__(self, store: PromptStore, uses: Drains, model: SavedModel, socket: Path, folder: Path) -> None:
        self._store = store
        self._uses = uses
        self._model = model
        self._socket = str(socket)
        self._folder = folder
        # The last task of each slot that has been saved.
        self._saved: dict[int, int] = {}
        self._saving = asyncio.Lock()
        self._restored = asyncio.Event()

    async def ahead(self, within: float = AHEAD_SECONDS) -> None:
        """Return when `run` has restored what there was, or after `within` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._restored.wait()

    async def run(self) -> None:
        """Restore what there is; then save it whenever the process has been used and is idle. Does not return."""
        try:
            await self.restore()
        finally:
            self._restored.set()
        while True:
            await self._uses.used_and_idle(self._model.name, self._model.generation, IDLE_SECONDS)
            await self.save(FILE_SECONDS)

    async def restore(self) -> int:
        """Fill empty slots, the first one with the latest prompt; returns the number of them. The engine gives new
        requests the last empty slot."""
        model, done = self._model, 0
        try:
            await in_thread(lambda stop: self._store.keep_only(model.key, model.path), "saved prompts")
            kept = await in_thread(lambda stop: self._store.find(model.key), "saved prompts")
            count = len(await slots.list_slots(self._socket)) if kept else 0
            for number, saved in zip(range(count), kept, strict=False):
                done += await self._restore_one(number, saved)
        except _ERRORS as error:
            log.debug("%s: saved prompts are not restored: %r", model.name, error)
        if done:
            log.info("%s: %d saved prompts are restored", model.name, done)
        return done

    async def _restore_one(self, number: int, saved: SavedPrompt) -> bool:
        model, name = self._model, saved.name
        if not await in_thread(partial(self._stage, saved), "saved prompts"):
            log.debug("%s: the saved prompt %s is damaged, and removed", model.name, name)
            return False
        try:
            states = {state.number: state for state in await slots.list_slots(self._socket)}
            if states[number].busy or states[number].task is not None:
                return False
            await slots.restore(self._socket, number, name, deadline=FILE_SECONDS)
            if self._had_guest() and await self._has_task(number):
                # The guest's request may have come before: then the slot is of its trust domain.
                await slots.erase(self._socket, number, deadline=FILE_SECONDS)
                return False
        except (ValueError, KeyError) as error:
            log.debug("%s: the engine does not read the saved prompt %s: %s", model.name, name, error)
            await in_thread(lambda stop: self._store.remove(model.key, name), "saved prompts")
            return False
        except (OSError, TimeoutError):
            # Perhaps the engine ended because of it: then the next one would, too, and the model would never be served.
            await in_thread(lambda stop: self._store.remove(model.key, name), "saved prompts")
            raise
        finally:
            (self._folder / name).unlink(missing_ok=True)
        return True

    def _had_guest(self) -> bool:
        return self._uses.had_guest(self._model.name, self._model.generation)

    async def _has_task(self, number: int) -> bool:
        return any(state.task is not None for state in await slots.list_slots(self._socket) if state.number == number)

    def _stage(self, saved: SavedPrompt, stop: object) -> bool:
        del stop
        return self._store.stage(self._model.key, saved, self._folder / saved.name)

    async def save(self, within: float) -> int:
        """Save what is new in the slots, the latest first, for `within` seconds at most; returns the number of
        files."""
        done = 0
        with contextlib.suppress(TimeoutError):
            async with self._saving, asyncio.timeout(within):
                try:
                    states = await slots.list_slots(self._socket)
                    for state in self._new(states):
                        if self._had_guest():
                            log.debug("%s: prompts are not saved: guests have used it", self._model.name)
                            break
                        done += await self._save_one(state)
                except (OSError, ValueError) as error:
                    log.debug("%s: prompts are not saved: %r", self._model.name, error)
        if done:
            log.info("%s: %d computed prompts are saved", self._model.name, done)
        return done

    def _new(self, states: Sequence[SlotState]) -> list[SlotState]:
        """The slots to save, the one used last first."""
        found = [
            state
            for state in states
            if not state.busy
            and state.task is not None
            and state.tokens >= LEAST_TOKENS
            and self._saved.get(state.number) != state.task
        ]
        return sorted(found, key=lambda state: -(state.task or 0))

    async def _save_one(self, state: SlotState) -> bool:
        model, name = self._model, f"{state.number}.slot"
        size = int(state.tokens * model.bytes_per_token * OVERHEAD)
        if size > await in_thread(lambda stop: self._store.room(), "saved prompts"):
            log.debug("%s: a prompt of %d tokens is too large to be saved", model.name, state.tokens)
            return False
        file = self._folder / name
        try:
            tokens = await slots.save(self._socket, state.number, name, deadline=FILE_SECONDS)
            if self._had_guest():  # one came meanwhile, and the engine saves a slot when it is no longer busy
                return False
            await in_thread(lambda stop: self._store.add(model.key, model.path, file, tokens), "saved prompts")
        finally:
            file.unlink(missing_ok=True)
        assert state.task is not None
        self._saved[state.number] = state.task
        return True
