"""Whether a model would fit a machine, from its shape alone: for a list to choose from, before there is a file.

Law: the choice is `fitting`'s own, so that what is told here is what would be done; only the figures are `forecast`'s
instead of the engine's. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import forecast
from meshllm.core.memory.layer_placement import FitVerdict, MemoryBudget, PlacementNeed, PlacementTrial, choose
from meshllm.core.memory.model_shape import ModelShape

# Of so many machines like this one people still think; beyond, a model is too big.
MOST_MACHINES = 16


class FitOutlook(Enum):
    """What can be said of a model and a machine; the values are for programs."""

    FITS = "fits"
    LESS_CONTEXT = "less-context"
    SPLIT = "split"
    TOO_BIG = "too-big"


@dataclass(frozen=True, slots=True)
class FitPreview:
    """`size` is what would be served, or the least that makes sense where it does not fit; `memory` the bytes that
    takes; `machines` how many like this one it takes together (1: this one)."""

    outlook: FitOutlook
    size: ContextSize
    memory: int
    machines: int = 1


def outlook(
    shape: ModelShape, sizes: Sequence[ContextSize], room: MemoryBudget, *, embeds: bool = False, beside: int = 0
) -> FitPreview:
    """The prospect of serving `shape` in one of `sizes`, best first, in `room`; `beside` bytes are taken by what goes
    with it."""
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
    # What is read from the disk again and again is served, but nobody would wish for it.
    least = sizes[-1]
    memory = forecast(shape, least, embeds=embeds).total + beside
    each = max(room.host, sum(accelerator.room for accelerator in room.accelerators))
    machines = max(2, -(-memory // each)) if each else MOST_MACHINES + 1
    prospect = FitOutlook.SPLIT if machines <= MOST_MACHINES else FitOutlook.TOO_BIG
    return FitPreview(prospect, least, memory, machines)


def need(shape: ModelShape, trial: PlacementTrial, *, embeds: bool = False, beside: int = 0) -> PlacementNeed:
    """What `trial` would take, by the forecast; what goes `beside` is held where most layers are."""
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
