"""Whether a model would fit a machine, from its shape alone."""

from __future__ import annotations

import pytest

from meshllm.core.memory.estimate import forecast
from meshllm.core.memory.fit_preview import MAX_MACHINES, FitOutlook, need, outlook
from meshllm.core.memory.layer_placement import MemoryBudget, PlacementNeed, PlacementTrial, judge
from meshllm.core.memory.model_shape import LayerShape, ModelShape
from tests.core.memory.test_layer_placement import DENSE, GB, SIZES, gpu


def test_preview_of_a_model_that_fits() -> None:
    told = outlook(DENSE, SIZES, MemoryBudget(64 * GB))
    assert (told.outlook, told.size, told.machines) == (FitOutlook.FITS, SIZES[0], 1)
    assert told.memory == forecast(DENSE, SIZES[0]).total


def test_preview_reports_less_context_but_not_fewer_slots() -> None:
    assert outlook(DENSE, SIZES, MemoryBudget(15 * GB)).outlook is FitOutlook.FITS
    told = outlook(DENSE, SIZES, MemoryBudget(int(6.5 * GB)))
    assert told.outlook is FitOutlook.LESS_CONTEXT
    assert told.size.context_length < SIZES[0].context_length
    assert told.memory <= 6.5 * GB


def test_preview_of_disk_paging_is_a_split() -> None:
    told = outlook(DENSE, SIZES, MemoryBudget(4 * GB))
    assert (told.outlook, told.machines) == (FitOutlook.SPLIT, 2)
    assert told.size == SIZES[-1]
    assert outlook(DENSE, SIZES, MemoryBudget(told.memory // MAX_MACHINES)).outlook in (
        FitOutlook.SPLIT,
        FitOutlook.TOO_BIG,
    )
    assert outlook(DENSE, SIZES, MemoryBudget(told.memory // (MAX_MACHINES + 1))).outlook is FitOutlook.TOO_BIG
    assert outlook(DENSE, SIZES, MemoryBudget(0)).outlook is FitOutlook.TOO_BIG


def test_preview_counts_bytes_beside_the_model() -> None:
    least = outlook(DENSE, SIZES, MemoryBudget(4 * GB)).memory
    enough = MemoryBudget(least + GB // 10)
    assert outlook(DENSE, SIZES, enough).outlook is FitOutlook.LESS_CONTEXT
    assert outlook(DENSE, SIZES, enough, beside=GB).outlook is FitOutlook.SPLIT


def test_preview_with_accelerators() -> None:
    assert outlook(DENSE, SIZES, MemoryBudget(2 * GB, (gpu(24),))).outlook is FitOutlook.FITS
    assert outlook(DENSE, SIZES, MemoryBudget(64 * GB, (gpu(3),))).outlook is FitOutlook.FITS, (
        "the rest is on the processor"
    )
    told = outlook(DENSE, SIZES, MemoryBudget(2 * GB, (gpu(3),)))
    assert (told.outlook, told.machines) == (FitOutlook.SPLIT, 2)


@pytest.mark.parametrize("moved", range(4))
def test_preview_need_adds_up_to_the_estimate(moved: int) -> None:
    """Whatever is moved, weights and what is kept are somewhere, and nothing is twice but what computing takes."""
    layers = tuple(LayerShape(weights=100 + index, keys=10, values=10) for index in range(2))
    shape = ModelShape(layers, input=50, output=30)
    size = SIZES[-1]
    told = need(shape, PlacementTrial(size, (moved,)))
    whole = need(shape, PlacementTrial(size))
    compute = forecast(shape, size).compute if moved else 0
    assert told.host + sum(told.accelerators) == whole.host + compute
    assert whole.mapped == shape.weights
    assert told.mapped == shape.weights - (30, 30 + 101, 30 + 101 + 100)[moved - 1] if moved else whole.mapped


def test_preview_copies_a_tied_output_and_keeps_experts() -> None:
    shape = ModelShape((LayerShape(weights=100, experts=90),), input=50, tied=True)
    size = SIZES[-1]
    every, aside = need(shape, PlacementTrial(size, (2,))), need(shape, PlacementTrial(size, (2,), experts_aside=1))
    assert every.mapped == 50
    assert aside.mapped == 50 + 90
    assert every.accelerators[0] - aside.accelerators[0] == 90


def test_preview_agrees_with_judge() -> None:
    room = MemoryBudget(64 * GB, (gpu(24),))
    told = need(DENSE, PlacementTrial(SIZES[-1], (len(DENSE.layers) + 1,)))
    assert isinstance(told, PlacementNeed)
    assert judge(told, room).value == "fits"
