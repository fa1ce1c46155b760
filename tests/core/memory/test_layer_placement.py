"""Where layers go: what is chosen fits, nothing better was possible in the order of preference, nothing goes unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.memory.context_size import ContextSize, candidates
from meshllm.core.memory.estimate import cache_bytes, padded
from meshllm.core.memory.fit_text import WantedSize, describe, losses, shortage
from meshllm.core.memory.layer_placement import (
    MOST_TRIALS,
    AcceleratorBudget,
    FitVerdict,
    LayerPlacement,
    MemoryBudget,
    PlacementNeed,
    PlacementTrial,
    choose,
)
from meshllm.core.memory.model_shape import LayerShape, ModelShape

GB = 10**9
LAYERS = 32
# Some 8 billion parameters in 4 bits: 32 layers of 125 MB, and 128 kB for each token of context.
DENSE = ModelShape(
    (LayerShape(125_000_000, keys=1024, values=1024),) * LAYERS,
    input=300_000_000, output=400_000_000, width=4096, inner=14336, query=4096, vocabulary=128_000,
)  # fmt: skip
MIXTURE = ModelShape(
    (LayerShape(600_000_000, experts=560_000_000, keys=512, values=512),) * 48,
    input=200_000_000, output=250_000_000, width=2048, inner=6144, query=4096, vocabulary=152_000, experts=128,
    experts_used=8,
)  # fmt: skip
COMPUTE = 300_000_000
SIZES = candidates(131_072, None)
BEST = WantedSize(SIZES[0], 131_072)


def engine(shape: ModelShape, room: MemoryBudget, trial: PlacementTrial) -> PlacementNeed:
    """What an engine would say: weights, cache, and a buffer wherever something is computed."""
    kept = [cache_bytes(layer, padded(trial.size.context_length), trial.size.slots) for layer in shape.layers]
    costs = [
        layer.weights + kept[index] - (layer.experts if index < trial.experts_aside else 0)
        for index, layer in enumerate(shape.layers)
    ] + [shape.output]
    first = len(costs) - sum(trial.layers)
    at, on = first, []
    for count in trial.layers:
        on.append(sum(costs[at : at + count]) + COMPUTE * bool(count))
        at += count
    aside = sum(shape.layers[index].experts for index in range(first, min(trial.experts_aside, len(shape.layers))))
    weights = sum(layer.weights for layer in shape.layers[:first]) + aside + shape.input
    weights += shape.output if first == len(costs) else 0
    return PlacementNeed(weights + sum(kept[:first]) + COMPUTE, weights, tuple(on))


def run(
    shape: ModelShape,
    room: MemoryBudget,
    sizes: tuple[ContextSize, ...] = SIZES,
    ask: Callable[[ModelShape, MemoryBudget, PlacementTrial], PlacementNeed] = engine,
) -> tuple[LayerPlacement, list[PlacementTrial]]:
    """The fit, and all that was asked for it."""
    asked: list[PlacementTrial] = []
    search = choose(shape, sizes, room)
    try:
        trial = next(search)
        while True:
            asked.append(trial)
            trial = search.send(ask(shape, room, trial))
    except StopIteration as end:
        fit: LayerPlacement = end.value
        return fit, asked


def gpu(room: float, name: str = "CUDA0", *, shared: bool = False) -> AcceleratorBudget:
    return AcceleratorBudget(name, int(room * GB), shared)


# -- without accelerators


def test_choose_takes_the_best_size_that_fits() -> None:
    plenty, asked = run(DENSE, MemoryBudget(64 * GB))
    assert (plenty.trial.size, plenty.verdict, len(asked)) == (SIZES[0], FitVerdict.FITS, 1)
    assert losses(plenty, BEST, DENSE, MemoryBudget(64 * GB)) == ""
    assert "on the CPU: " in describe(plenty, BEST, DENSE, MemoryBudget(64 * GB))
    assert "context 32768 of 131072 (more with --ctx-size)" in describe(plenty, BEST, DENSE, MemoryBudget(64 * GB))
    room = MemoryBudget(15 * GB)
    less, _ = run(DENSE, room)
    assert less.trial.size == ContextSize(32768, 2)
    assert losses(less, BEST, DENSE, room) == "2 of 4 parallel requests to save memory"
    assert losses(less, replace(BEST, capped=True), DENSE, room).endswith("parallel requests to stay within --max-vram")
    little, _ = run(DENSE, MemoryBudget(int(6.5 * GB)))
    assert little.trial.size.context_length < 32768
    assert "of 131072 to save memory" in losses(little, BEST, DENSE, MemoryBudget(int(6.5 * GB)))


def test_choose_allows_mapped_weights_above_ram_with_a_warning() -> None:
    room = MemoryBudget(3 * GB)
    fit, _ = run(DENSE, room)
    assert fit.verdict is FitVerdict.PAGES
    assert "from the disk again and again" in losses(fit, BEST, DENSE, room)
    assert run(DENSE, MemoryBudget(2 * GB))[0].verdict is FitVerdict.TOO_BIG, "more than twice the memory"
    assert run(DENSE, replace(room, capped=True))[0].verdict is FitVerdict.TOO_BIG, "a cap is a cap"


def test_shortage_names_the_missing_bytes_and_advice() -> None:
    room = MemoryBudget(2 * GB, capped=True)
    fit, _ = run(DENSE, room)
    assert fit.trial.size == SIZES[-1]
    reason, advice = shortage(fit, BEST, room)
    missing = (fit.need.host - 2 * GB) / 1e9
    assert f"{missing:.1f} GB are missing" in reason
    assert "2.0 GB of memory may be used" in reason
    assert "--max-vram" in advice
    assert "--ctx-size" not in advice
    asked = WantedSize(ContextSize(131_072, 4), 131_072, asked=True)
    fit, _ = run(DENSE, MemoryBudget(9 * GB), candidates(131_072, 131_072))
    assert (fit.verdict, fit.trial.size) == (FitVerdict.TOO_BIG, ContextSize(131_072, 1)), "what was asked for is kept"
    assert "--ctx-size" in shortage(fit, asked, MemoryBudget(9 * GB))[1]


# -- with accelerators


def test_choose_puts_all_layers_on_one_accelerator_if_they_fit() -> None:
    room = MemoryBudget(32 * GB, (gpu(24),))
    fit, asked = run(DENSE, room)
    assert (fit.trial.layers, fit.trial.size, len(asked)) == ((LAYERS + 1,), SIZES[0], 1)
    assert describe(fit, BEST, DENSE, room).startswith("all 32 layers on CUDA0: ")
    assert losses(fit, BEST, DENSE, room) == ""


def test_choose_reduces_slots_and_context_before_layers() -> None:
    room = MemoryBudget(32 * GB, (gpu(10),))
    fit, _ = run(DENSE, room)
    assert (fit.trial.layers, fit.trial.size) == ((LAYERS + 1,), ContextSize(32768, 1))
    assert losses(fit, BEST, DENSE, room) == "1 of 4 parallel requests to save memory"


def test_choose_leaves_the_rest_on_the_cpu() -> None:
    room = MemoryBudget(32 * GB, (gpu(4),))
    fit, asked = run(DENSE, room)
    assert 0 < fit.trial.layers[0] < LAYERS + 1
    assert fit.trial.size == ContextSize(32768, 1)
    assert len(asked) <= 2 * MOST_TRIALS
    assert losses(fit, BEST, DENSE, room).startswith(f"{fit.trial.layers[0] - 1} of 32 layers on CUDA0: ")
    assert "the rest on the CPU: " in describe(fit, BEST, DENSE, room)
    # One more layer would be too much.
    more = engine(DENSE, room, replace(fit.trial, layers=(fit.trial.layers[0] + 1,)))
    assert more.accelerators[0] > room.accelerators[0].room


def test_choose_ignores_an_accelerator_smaller_than_a_layer() -> None:
    room = MemoryBudget(32 * GB, (gpu(0.1),))
    fit, _ = run(DENSE, room)
    assert (sum(fit.trial.layers), fit.verdict, fit.trial.size) == (0, FitVerdict.FITS, SIZES[0])
    assert "no layer fits an accelerator" in losses(fit, BEST, DENSE, room)


def test_choose_fills_unequal_accelerators_evenly() -> None:
    room = MemoryBudget(32 * GB, (gpu(8), gpu(4, "CUDA1")))
    fit, _ = run(DENSE, room)
    assert sum(fit.trial.layers) == LAYERS + 1
    assert fit.trial.layers[0] > fit.trial.layers[1] > 1
    told = describe(fit, BEST, DENSE, room)
    assert f"{fit.trial.layers[0]} on CUDA0" in told
    assert f"{fit.trial.layers[1] - 1} on CUDA1" in told


def test_choose_uses_the_largest_accelerator_alone_if_it_suffices() -> None:
    fit, _ = run(DENSE, MemoryBudget(32 * GB, (gpu(6), gpu(40, "CUDA1"), gpu(30, "CUDA2"))))
    assert fit.trial.layers == (0, LAYERS + 1, 0)


def test_choose_moves_experts_to_ram_before_layers() -> None:
    room = MemoryBudget(64 * GB, (gpu(12),))
    fit, _ = run(MIXTURE, room)
    assert fit.trial.layers == (49,)
    assert 0 < fit.trial.experts_aside < 48
    assert f"the experts of {fit.trial.experts_aside} layers in RAM" in losses(fit, BEST, MIXTURE, room)
    fewer = engine(MIXTURE, room, replace(fit.trial, experts_aside=fit.trial.experts_aside - 1))
    assert fewer.accelerators[0] > room.accelerators[0].room
    tiny = MemoryBudget(64 * GB, (gpu(2),))
    fit, _ = run(MIXTURE, tiny)
    assert fit.trial.experts_aside == 48
    assert 0 < fit.trial.layers[0] < 49


def test_judge_counts_shared_memory_once() -> None:
    room = MemoryBudget(16 * GB, (gpu(12, "MTL0", shared=True),))
    fit, _ = run(DENSE, room)
    assert sum(fit.trial.layers) == LAYERS + 1
    assert fit.need.host + fit.need.accelerators[0] <= 16 * GB
    assert run(DENSE, MemoryBudget(4 * GB, (gpu(12, "MTL0", shared=True),)))[0].verdict is not FitVerdict.FITS


def test_choose_uses_an_accelerator_if_ram_is_short() -> None:
    room = MemoryBudget(int(2.6 * GB), (gpu(2),))
    fit, _ = run(DENSE, room, candidates(4096, 4096))
    assert fit.verdict is FitVerdict.PAGES
    assert fit.trial.layers[0] > 0


def test_choose_corrects_its_estimate_by_the_engines_need() -> None:
    def greedy(shape: ModelShape, room: MemoryBudget, trial: PlacementTrial) -> PlacementNeed:
        need = engine(shape, room, trial)
        return replace(need, accelerators=tuple(taken + 2 * GB * bool(taken) for taken in need.accelerators))

    fit, _ = run(DENSE, MemoryBudget(32 * GB, (gpu(6),)), ask=greedy)
    assert fit.verdict is FitVerdict.FITS
    assert fit.need.accelerators[0] <= 6 * GB
    assert fit.trial.layers[0] > 5


ROOMS = st.builds(
    lambda host, sizes, shared, capped: MemoryBudget(
        host, tuple(AcceleratorBudget(f"GPU{index}", size, shared) for index, size in enumerate(sizes)), capped
    ),
    st.integers(0, 80 * GB),
    st.lists(st.integers(0, 30 * GB), max_size=3),
    st.booleans(),
    st.booleans(),
)


@given(ROOMS, st.sampled_from([DENSE, MIXTURE]), st.sampled_from([None, 4096, 65536]))
def test_choose_result_always_fits(room: MemoryBudget, shape: ModelShape, asked: int | None) -> None:
    sizes = candidates(131_072, asked)
    wish = WantedSize(sizes[0], 131_072, asked is not None)
    fit, trials = run(shape, room, sizes)
    assert fit.trial.size in sizes
    assert len(trials) <= (2 * MOST_TRIALS + 1) * len(sizes)
    assert fit.need == engine(shape, room, fit.trial)
    if fit.verdict is FitVerdict.FITS:
        assert all(taken <= given.room for taken, given in zip(fit.need.accelerators, room.accelerators, strict=True))
        together = sum(fit.need.accelerators) if any(given.shared for given in room.accelerators) else 0
        assert fit.need.host + together <= room.host
    else:
        assert losses(fit, wish, shape, room) or fit.verdict is FitVerdict.TOO_BIG
        assert all(shortage(fit, wish, room))
    if fit.trial.size != sizes[0]:
        assert "to save memory" in losses(fit, wish, shape, room)
    assert describe(fit, wish, shape, room)
