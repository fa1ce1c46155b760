"""Previews whether a model fits a machine, from its shape alone, for lists of models that are not downloaded. Pure.

The choice is that of `layer_placement`; the figures are those of `estimate` instead of the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import forecast
from meshllm.core.memory.layer_placement import FitVerdict, MemoryBudget, PlacementNeed, PlacementTrial, choose
from meshllm.core.memory.model_shape import ModelShape

# A model that needs more machines like this one is too big.
MAX_MACHINES = 16


class FitOutlook(Enum):
    """The result of a preview; the values are for programs."""

    FITS = "fits"
    LESS_CONTEXT = "less-context"
    SPLIT = "split"
    TOO_BIG = "too-big"


@dataclass(frozen=True, slots=True)
class FitPreview:
    """The result. `size`: what would be served, or the smallest size if the model does not fit. `memory`: bytes needed.
    `machines`: the number of machines like this one that are needed (1: this one suffices)."""

    outlook: FitOutlook
    size: ContextSize
    memory: int
    machines: int = 1


def outlook(
    shape: ModelShape, sizes: Sequence[ContextSize], room: MemoryBudget, *, embeds: bool = False, beside: int = 0
) -> FitPreview:
    """Whether `shape` fits into `room` in one of `sizes` (best first). `beside`: further bytes needed, such as an image
    encoder."""
    search = choose(shape, sizes, room)
    trial = next(search)
    while True:
        needed = need(shape, trial, embeds=embeds, beside=beside)
        try:
            trial = search.send(needed)
        except StopIteration as end:
            fit = end.value
            break
    memory = fit.need.host + sum(fit.need.accelerators)
    if fit.verdict is FitVerdict.FITS:
        less = fit.trial.size.context_length < sizes[0].context_length
        return FitPreview(FitOutlook.LESS_CONTEXT if less else FitOutlook.FITS, fit.trial.size, memory)
    # Serving with weights read from the disk again and again is possible, but too slow to recommend.
    least = sizes[-1]
    memory = forecast(shape, least, embeds=embeds).total + beside
    each = max(room.host, sum(accelerator.room for accelerator in room.accelerators))
    machines = max(2, -(-memory // each)) if each else MAX_MACHINES + 1
    found = FitOutlook.SPLIT if machines <= MAX_MACHINES else FitOutlook.TOO_BIG
    return FitPreview(found, least, memory, machines)


def need(shape: ModelShape, trial: PlacementTrial, *, embeds: bool = False, beside: int = 0) -> PlacementNeed:
    """The memory of `trial` by the estimate. The `beside` bytes are on the device with most layers."""
    told = forecast(shape, trial.size, embeds=embeds)
    weights = [
        taken - (layer.experts if index < trial.experts_aside else 0)
        for index, (taken, layer) in enumerate(zip(told.weights, shape.layers, strict=True))
    ]
    kept = [*told.cache, 0]
    weights.append(shape.output + (shape.input if shape.tied else 0))
    at = len(weights) - sum(trial.layers)
    there: list[int] = []
    moved = 0
    for count in trial.layers:
        part = slice(at, at + count)
        there.append(sum(weights[part]) + sum(kept[part]) + (told.compute if count else 0))
        moved += sum(weights[part])
        at += count
    if any(there):
        there[max(range(len(there)), key=lambda index: there[index])] += beside
        beside = 0
    # A head that is the embedding is copied, not moved.
    copied = shape.input if shape.tied and any(trial.layers) else 0
    mapped = max(0, shape.weights - moved + copied)
    cache = sum(told.cache[: len(told.cache) - max(0, sum(trial.layers) - 1)])
    return PlacementNeed(mapped + cache + told.compute + told.scores + told.process + beside, mapped, tuple(there))
