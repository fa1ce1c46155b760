"""Chooses where a model's layers go, with how much context and for how many parallel requests. Pure.

`choose` is a generator: it yields a `PlacementTrial`, is sent the `PlacementNeed` that the engine computes for it, and
returns a `LayerPlacement`, after a bounded number of trials. Order of preference: all layers on the accelerators, with
as much context and as many slots as fit; else the whole context for one request and as many layers as fit, the experts
of a mixture first in RAM (most of its bytes, least of its work); else the CPU alone. Slots are given up before context.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import Enum

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import MICRO_BATCH, cache_bytes, forecast, padded
from meshllm.core.memory.model_shape import ModelShape

# Trials for one size and one kind of placement; two or three are usual, as each answer corrects the next trial.
MOST_TRIALS = 8
# A mapped file may exceed the memory by this factor, with weights read again from the disk; beyond, a token takes
# minutes.
MOST_PAGED = 2.0


class FitVerdict(Enum):
    """Whether a model can be served here."""

    FITS = "fits"
    PAGES = "pages"  # it fits with weights that are read from the disk again and again
    TOO_BIG = "too big"


@dataclass(frozen=True, slots=True)
class AcceleratorBudget:
    """`room`: bytes that may be used. `shared`: they are part of the computer's RAM and count against that, too."""

    name: str
    room: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """Bytes of RAM that may be used (`host`), and the accelerators. `capped`: the user limited the RAM (--max-vram), so
    that not even a mapped file may exceed it."""

    host: int
    accelerators: tuple[AcceleratorBudget, ...] = ()
    capped: bool = False


@dataclass(frozen=True, slots=True)
class PlacementTrial:
    """A placement: the number of the model's last layers on each accelerator, in their order (the output counts as
    one). The routed experts of the first `experts_aside` layers are in RAM."""

    size: ContextSize
    layers: tuple[int, ...] = ()
    experts_aside: int = 0


@dataclass(frozen=True, slots=True)
class PlacementNeed:
    """Bytes of RAM that a placement needs (`mapped`: the part that is a mapped file), and of each accelerator."""

    host: int
    mapped: int = 0
    accelerators: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """The chosen placement, its memory, and whether it fits."""

    trial: PlacementTrial
    need: PlacementNeed
    verdict: FitVerdict


def choose(
    shape: ModelShape, sizes: Sequence[ContextSize], room: MemoryBudget, *, micro_batch: int = MICRO_BATCH
) -> Generator[PlacementTrial, PlacementNeed, LayerPlacement]:
    """The best of `sizes` (best first, as `context_size.candidates` gives them) and where its layers go."""
    if room.accelerators:
        for size in sizes:
            found = yield from _place(shape, size, room, micro_batch, whole=True)
            if found is not None:
                return found
        paging = None
        for size in _slimmest(sizes):
            found = yield from _place(shape, size, room, micro_batch, whole=False)
            if found is not None and found.verdict is FitVerdict.FITS:
                return found
            paging = found or paging
        if paging is not None:
            return paging  # with the smallest context, which leaves most RAM for the page cache
    nothing = (0,) * len(room.accelerators)
    fit = None
    for size in sizes:
        trial = PlacementTrial(size, nothing)
        need = yield trial
        fit = LayerPlacement(trial, need, judge(need, room))
        if fit.verdict is FitVerdict.FITS:
            return fit
    assert fit is not None, "there is always a size to try"
    return fit


def judge(need: PlacementNeed, room: MemoryBudget) -> FitVerdict:
    """Whether `need` fits in `room`."""
    if any(taken > given.room for taken, given in zip(need.accelerators, room.accelerators, strict=False)):
        return FitVerdict.TOO_BIG
    taken = need.host + shared(need, room)
    if taken <= room.host:
        return FitVerdict.FITS
    paged = taken - need.mapped <= room.host and need.mapped <= MOST_PAGED * room.host
    return FitVerdict.PAGES if paged and not room.capped else FitVerdict.TOO_BIG


def shared(need: PlacementNeed, room: MemoryBudget) -> int:
    """Bytes of RAM that are used by accelerators without memory of their own."""
    pairs = zip(need.accelerators, room.accelerators, strict=False)
    return sum(taken for taken, accelerator in pairs if accelerator.shared)


def _slimmest(sizes: Sequence[ContextSize]) -> list[ContextSize]:
    """For each context length the size with the fewest slots."""
    fewest: dict[int, ContextSize] = {}
    for size in sizes:
        if size.context_length not in fewest or size.slots < fewest[size.context_length].slots:
            fewest[size.context_length] = size
    return list(fewest.values())


def _place(
    shape: ModelShape, size: ContextSize, room: MemoryBudget, micro_batch: int, *, whole: bool
) -> Generator[PlacementTrial, PlacementNeed, LayerPlacement | None]:
    """The placement of `size` with the most layers on accelerators that fits; `whole`: with all of them, or None."""
    costs = _Costs.of(shape, size, micro_batch)
    overhead = [forecast(shape, size, micro_batch=micro_batch).compute] * len(room.accelerators)
    for _ in range(MOST_TRIALS):
        trial = _spread(costs, size, room, overhead, whole=whole)
        if sum(trial.layers) == 0 or (whole and sum(trial.layers) < costs.count):
            return None
        need = yield trial
        verdict = judge(need, room)
        if verdict is FitVerdict.FITS or (verdict is FitVerdict.PAGES and not whole):
            return LayerPlacement(trial, need, verdict)
        if all(taken <= given.room for taken, given in zip(need.accelerators, room.accelerators, strict=True)):
            return None  # the RAM is short: moving layers does not help
        predicted = costs.on(trial)
        overhead = [
            max(known, taken - expected)
            for known, taken, expected in zip(overhead, need.accelerators, predicted, strict=True)
        ]
    return None


@dataclass(frozen=True, slots=True)
class _Costs:
    """Bytes of each layer with its context cache, the output as the last; and the part of the routed experts."""

    all: tuple[int, ...]
    experts: tuple[int, ...]

    @classmethod
    def of(cls, shape: ModelShape, size: ContextSize, micro_batch: int) -> _Costs:
        cells = padded(size.context_length)
        kept = [cache_bytes(layer, cells, size.slots, micro_batch) for layer in shape.layers]
        loaded = [0 if layer.idle else layer.weights for layer in shape.layers]
        # A tied output is a copy of the embedding on the accelerator; the embedding itself stays in RAM.
        head = shape.output + (shape.input if shape.tied else 0)
        return cls(
            (*(sum(pair) for pair in zip(loaded, kept, strict=True)), head),
            (*(layer.experts for layer in shape.layers), 0),
        )

    @property
    def count(self) -> int:
        return len(self.all)

    def without(self, experts_aside: int) -> list[int]:
        """The costs with the experts of that many layers in RAM."""
        return [
            cost - (experts if index < experts_aside else 0)
            for index, (cost, experts) in enumerate(zip(self.all, self.experts, strict=True))
        ]

    def on(self, trial: PlacementTrial) -> list[int]:
        """Bytes on each accelerator."""
        costs, at, found = self.without(trial.experts_aside), self.count - sum(trial.layers), []
        for layers in trial.layers:
            found.append(sum(costs[at : at + layers]))
            at += layers
        return found


def _spread(
    costs: _Costs, size: ContextSize, room: MemoryBudget, overhead: Sequence[int], *, whole: bool
) -> PlacementTrial:
    """Put as many layers on the accelerators as fit beside the `overhead` of each. Without `whole`: not all of them
    with all their experts, which was tried before."""
    rooms = [
        max(0, min(given.room, room.host if given.shared else given.room) - known)
        for given, known in zip(room.accelerators, overhead, strict=True)
    ]
    if whole:
        filled = _fill(costs.all, rooms)
        return PlacementTrial(size, _gathered(costs, rooms, filled) if sum(filled) == costs.count else filled)
    if not any(costs.experts):
        # With all layers on several accelerators the engine computes several batches at a time, in several times the
        # memory. With the first layer on the CPU the others may fit.
        return PlacementTrial(size, _fill(costs.all[1:], rooms))
    low, high = 1, costs.count - 1
    if sum(_fill(costs.without(high), rooms)) < costs.count:
        return PlacementTrial(size, _fill(costs.without(high), rooms), high)
    while low < high:  # the fewest that suffice: experts in RAM are slower
        middle = (low + high) // 2
        if sum(_fill(costs.without(middle), rooms)) == costs.count:
            high = middle
        else:
            low = middle + 1
    return PlacementTrial(size, _fill(costs.without(low), rooms), low)


def _fill(costs: Sequence[int], rooms: Sequence[int]) -> tuple[int, ...]:
    """Fill up the accelerators from the last to the first with layers from the last to the first."""
    counts, left = [0] * len(rooms), len(costs)
    for index in range(len(rooms) - 1, -1, -1):
        room = rooms[index]
        while left and costs[left - 1] <= room:
            room -= costs[left - 1]
            left -= 1
            counts[index] += 1
    return tuple(counts)


def _gathered(costs: _Costs, rooms: Sequence[int], filled: tuple[int, ...]) -> tuple[int, ...]:
    """Where to put layers that all fit: on the accelerator with most memory if it holds them, which saves transfers;
    else each accelerator is filled by about the same part."""
    roomiest = max(range(len(rooms)), key=lambda index: rooms[index])
    if sum(costs.all) <= rooms[roomiest]:
        return tuple(costs.count if index == roomiest else 0 for index in range(len(rooms)))
    for percent in range(5, 100, 5):
        counts = _fill(costs.all, [room * percent // 100 for room in rooms])
        if sum(counts) == costs.count:
            return counts
    return filled
