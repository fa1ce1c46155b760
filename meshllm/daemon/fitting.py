"""How a model is started on this machine: how much context, for how many requests at a time, in how much memory.

Law: what a model takes is the engine's own arithmetic; what there is, the machine's own word. A size that was asked for
is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from meshllm.core.sizing import Size, candidates
from meshllm.core.types import Purpose
from meshllm.engine import bindings
from meshllm.engine.installed import Engine
from meshllm.machine import resources
from meshllm.models.local import LocalModel
from meshllm.models.purpose import Usage

log = logging.getLogger(__name__)

# Of the memory that is available, this much stays for everything else on the machine.
MEMORY_SHARE = 0.9
# The engine keeps prompts it has computed, to continue them later; a tenth of the memory, at most what it would take.
PROMPT_CACHE_SHARE = 0.1
PROMPT_CACHE_MOST_MIB = 8192
# The engine's own, where we do not choose: what it computes in one go.
MICRO_BATCH = 512


@dataclass(frozen=True, slots=True)
class Fit:
    """How to start a model. `memory`: bytes it takes in all; `micro_batch`: tokens the engine has to compute in one
    go, None if it need not; `prompt_cache_mib`: room for prompts it has computed."""

    size: Size
    memory: int
    micro_batch: int | None
    prompt_cache_mib: int


class Fitter:
    """Finds what fits. `context`: tokens that were asked for, None where nobody did."""

    def __init__(self, context: int | None) -> None:
        self._context = context

    def offer(self) -> int:
        """Bytes that this machine has for models, now."""
        return int(resources.memory().available * MEMORY_SHARE)

    async def fit(self, engine: Engine, model: LocalModel, how: Usage) -> Fit:
        """How to start `model` for the use `how`. Raises as `bindings.memory_need` does."""
        size, memory = await self._size(engine, model, how)
        cache = _prompt_cache_mib() if how.purpose is Purpose.GENERATE else 0
        return Fit(size, memory, _micro_batch(how, size), cache)

    async def _size(self, engine: Engine, model: LocalModel, how: Usage) -> tuple[Size, int]:
        """The best size that fits this machine's memory, and the bytes it takes, by the engine's own arithmetic."""
        if self._context and 0 < model.context_length < self._context:
            log.warning("%s was made for %d tokens of context: it gets no more", model.name, model.context_length)
        # What computes a text in one go hardly ever keeps anything of it.
        tries = candidates(model.context_length, self._context, how.purpose, slots_are_free=how.at_once)
        room = self.offer()
        here = everywhere = 0
        for size in tries:
            here, everywhere = await self._need(engine, model, how, size)
            if here <= room:
                return size, everywhere
        # Let the engine try the smallest all the same: a file that is mapped can be larger than the memory.
        log.warning("%s needs %d MiB and %d MiB are available", model.name, here >> 20, room >> 20)
        return tries[-1], everywhere

    async def _need(self, engine: Engine, model: LocalModel, how: Usage, size: Size) -> tuple[int, int]:
        """Bytes of this computer's memory, and of all memory with that of its accelerators."""
        embeddings, micro_batch = how.purpose is not Purpose.GENERATE, _micro_batch(how, size) or MICRO_BATCH
        need = await bindings.memory_need(
            engine,
            model.path,
            context_size=size.context_length * size.slots,
            parallel=size.slots,
            micro_batch=micro_batch,
            embeddings=embeddings,
            pooling=how.pooling,
        )
        # Cleared, so really used, at the first batch that is full: 8 GB for 8192 tokens and a vocabulary of 250k words.
        scores = 4 * model.header.vocabulary_size * (micro_batch if embeddings else size.slots)
        return need.by_device().get("CPU", 0) + scores, need.total + scores


def _micro_batch(how: Usage, size: Size) -> int | None:
    """Tokens the engine has to compute in one go, None if it need not."""
    return size.context_length if how.at_once else None


def _prompt_cache_mib() -> int:
    return min(PROMPT_CACHE_MOST_MIB, int(resources.memory().available * PROMPT_CACHE_SHARE) >> 20)
