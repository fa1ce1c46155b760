"""Estimates the memory that a plan keeps free for a further model of this node, from its file or the catalogue."""

from __future__ import annotations

from meshllm.core.memory.context_size import candidates
from meshllm.core.memory.estimate import MICRO_BATCH, forecast
from meshllm.core.snapshot import Purpose
from meshllm.daemon.start_planner import KeptMemory
from meshllm.models.catalog.entry import CatalogEntry, Wanted
from meshllm.models.gguf.projector import projector_bytes
from meshllm.models.gguf.purpose import usage
from meshllm.models.library import drafts
from meshllm.models.library.local_model import LocalModel
from meshllm.models.library.store import Store

# An estimate is within a few per cent of what the engine takes (see `core.memory.estimate`).
MARGIN = 1.05
# Buffers and the process of a model of which only the catalogue's figures are known.
BESIDE_WEIGHTS = 384 << 20


def kept_for(
    name: str, source: Wanted | None, model: LocalModel | None, context: int | None, store: Store
) -> KeptMemory:
    """What to keep for the model `name`: by its file if it is on the disk (`model`, or found by `source`), else by the
    catalogue; nothing if it is unknown. Reads the file's header, so it blocks. `context`: --ctx-size."""
    if model is None and source is not None:
        model = drafts.load_complete(source, store)
    if model is not None:
        return KeptMemory(
            name, *(int(size * MARGIN) for size in (most_bytes(model, context), least_bytes(model, context)))
        )
    if isinstance(source, CatalogEntry):
        return KeptMemory(name, _listed(source, context, most=True), _listed(source, context, most=False))
    return KeptMemory(name, 0, 0)


def least_bytes(model: LocalModel, context: int | None) -> int:
    """The least memory in which `model` fits."""
    return _estimate(model, context, -1)


def most_bytes(model: LocalModel, context: int | None) -> int:
    """The memory of `model` with nothing reduced, without prompts kept for later requests."""
    return _estimate(model, context, 0)


def _estimate(model: LocalModel, context: int | None, number: int) -> int:
    how = usage(model.header)
    size = candidates(model.context_length, context, how.purpose, slots_are_free=how.at_once)[number]
    micro_batch = size.context_length if how.at_once else MICRO_BATCH
    embeds = how.purpose is not Purpose.GENERATE
    beside = 0 if model.projector is None else projector_bytes(model.projector)
    return forecast(model.header.shape, size, micro_batch=micro_batch, embeds=embeds).total + beside


def _listed(entry: CatalogEntry, context: int | None, *, most: bool) -> int:
    sizes = candidates(entry.context_length, context, entry.purpose)
    size = sizes[0] if most else sizes[-1]
    cache = sum(layers.bytes_for(size.context_length) for layers in entry.cache) * size.slots
    return int((entry.size + cache) * MARGIN) + BESIDE_WEIGHTS
