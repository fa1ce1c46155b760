"""What people are told of a fit: where the layers went, what was given up for memory, and what is missing.

Law: pure, and nothing is given up without a word. Sizes are decimal: 1 GB is 10**9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.layer_placement import FitVerdict, LayerPlacement, MemoryBudget, PlacementNeed, shared
from meshllm.core.memory.model_shape import ModelShape
from meshllm.util.format import gigabytes


@dataclass(frozen=True, slots=True)
class WantedSize:
    """What would be taken if there were memory for it: `best` of all sizes. `trained`: tokens the model was made for
    (0: unknown); `asked`: somebody asked for that context."""

    best: ContextSize
    trained: int = 0
    asked: bool = False


def describe(fit: LayerPlacement, wish: WantedSize, shape: ModelShape, room: MemoryBudget) -> str:
    """One line: the places with what they take of what there is, the context and why it is that, the slots."""
    return "; ".join([_places(fit, shape, room), _context(fit.trial.size, wish), *_slots(fit.trial.size, wish)])


def losses(fit: LayerPlacement, wish: WantedSize, shape: ModelShape, room: MemoryBudget) -> str:
    """What was given up for memory, for a warning; "" where nothing was."""
    size, said = fit.trial.size, []
    if room.accelerators and (fit.trial.experts_aside or sum(fit.trial.layers) <= len(shape.layers)):
        said.append(_places(fit, shape, room))
    if size.context_length < wish.best.context_length:
        said.append(_context(size, wish))
    said += _slots(size, wish)
    if fit.verdict is FitVerdict.PAGES:
        said.append(
            f"its weights ({gigabytes(fit.need.mapped)}) are more than the memory that is free "
            f"({gigabytes(room.host)}): they are read from the disk again and again, and answers are very slow"
        )
    return "; ".join(said)


def shortage(fit: LayerPlacement, wish: WantedSize, room: MemoryBudget) -> tuple[str, str]:
    """Why a model cannot be served here: what is missing, and what would help."""
    need, size = fit.need, fit.trial.size
    taken = need.host + sum(need.accelerators)
    there = room.host + sum(accelerator.room for accelerator in room.accelerators if not accelerator.shared)
    missing = max(taken - there, _excess(need, room))
    least = f"with {size.context_length} tokens of context" + ("" if wish.asked else ", the least that makes sense,")
    places = "memory" if not room.accelerators else "memory, that of accelerators included,"
    allowed = "may be used" if room.capped else "is free"
    reason = (
        f"{least} it takes {gigabytes(taken)}, and {gigabytes(there)} of {places} {allowed}: "
        f"{gigabytes(missing)} are missing"
    )
    help_ = ["choose a smaller quantization or model"]
    if wish.asked:
        help_.append("a smaller --ctx-size")
    if room.capped:
        help_.append("a larger --max-vram")
    return reason, f"{', or '.join(help_).capitalize()}; or pool more machines (--join)."


def _excess(need: PlacementNeed, room: MemoryBudget) -> int:
    pairs = zip(need.accelerators, room.accelerators, strict=False)
    over = [taken - accelerator.room for taken, accelerator in pairs]
    return max([need.host + shared(need, room) - room.host, *over])


def _places(fit: LayerPlacement, shape: ModelShape, room: MemoryBudget) -> str:
    trial, need = fit.trial, fit.need
    layers = sum(not layer.idle for layer in shape.layers)
    idle = len(shape.layers) - layers
    on = [
        (count, accelerator.name, taken, accelerator.room)
        for count, accelerator, taken in zip(trial.layers, room.accelerators, need.accelerators, strict=False)
        if count
    ]
    host = f"{gigabytes(need.host)} of {gigabytes(room.host)}"
    if not on:
        why = " (no layer fits an accelerator)" if room.accelerators else ""
        return f"on the processor{why}: {host}"
    # The output counts as a layer of the last accelerator: people count the model's own.
    counts = [count for count, *_ in on]
    counts[-1] -= 1 + idle
    total = max(0, sum(counts))
    placed = ", ".join(
        f"{name}: {gigabytes(taken)} of {gigabytes(size)}"
        if len(on) == 1
        else f"{count} on {name}: {gigabytes(taken)} of {gigabytes(size)}"
        for (_, name, taken, size), count in zip(on, counts, strict=True)
    )
    whole = f"all {layers} layers" if total >= layers else f"{total} of {layers} layers"
    told = f"{whole} on {placed}" if len(on) == 1 else f"{whole} on accelerators ({placed})"
    if trial.experts_aside:
        return f"{told}; the experts of {trial.experts_aside} layers in the computer's memory: {host}"
    return told if total >= layers else f"{told}; the rest on the processor: {host}"


def _context(size: ContextSize, wish: WantedSize) -> str:
    told = f"context {size.context_length}"
    if size.context_length < wish.best.context_length:
        return f"{told} of {wish.trained or wish.best.context_length} for memory"
    if wish.asked:
        reached = wish.trained and wish.trained <= size.context_length
        return f"{told}, all that the model was made for" if reached else f"{told}, as asked for"
    if wish.trained > size.context_length:
        return f"{told} of {wish.trained} (more with --ctx-size)"
    return told


def _slots(size: ContextSize, wish: WantedSize) -> list[str]:
    if size.slots >= wish.best.slots:
        return []
    return [f"{size.slots} of {wish.best.slots} requests at a time for memory"]
