"""Texts about a placement for users: where the layers are, what was reduced to save memory, what is missing.

Pure. Sizes are decimal: 1 GB is 10**9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.layer_placement import FitVerdict, LayerPlacement, MemoryBudget, PlacementNeed, shared
from meshllm.core.memory.model_shape import ModelShape
from meshllm.util.format import gigabytes


@dataclass(frozen=True, slots=True)
class WantedSize:
    """The size with enough memory: `best` of all sizes. `trained`: context length of the model (0: unknown). `asked`:
    the user set --ctx-size; `capped`: with less memory than there is (--max-vram)."""

    best: ContextSize
    trained: int = 0
    asked: bool = False
    capped: bool = False

    @property
    def why_less(self) -> str:
        """Why a placement has less."""
        return "to stay within --max-vram" if self.capped else "to save memory"


def describe(fit: LayerPlacement, wish: WantedSize, shape: ModelShape, room: MemoryBudget) -> str:
    """One line: the devices with the memory used of each, the context length, the slots."""
    return "; ".join([_places(fit, shape, room), _context(fit.trial.size, wish), *_slots(fit.trial.size, wish)])


def losses(fit: LayerPlacement, wish: WantedSize, shape: ModelShape, room: MemoryBudget) -> str:
    """What was reduced to save memory, for a warning; "" if nothing was."""
    size, said = fit.trial.size, []
    if room.accelerators and (fit.trial.experts_aside or sum(fit.trial.layers) <= len(shape.layers)):
        said.append(_places(fit, shape, room))
    if size.context_length < wish.best.context_length:
        said.append(_context(size, wish))
    said += _slots(size, wish)
    if fit.verdict is FitVerdict.PAGES:
        said.append(
            f"its weights ({gigabytes(fit.need.mapped)}) exceed the free memory ({gigabytes(room.host)}): "
            "the engine reads them from the disk again and again, and answers are very slow"
        )
    return "; ".join(said)


def shortage(fit: LayerPlacement, wish: WantedSize, room: MemoryBudget) -> tuple[str, str]:
    """Why a model does not fit, and what to do."""
    need, size = fit.need, fit.trial.size
    taken = need.host + sum(need.accelerators)
    there = room.host + sum(accelerator.room for accelerator in room.accelerators if not accelerator.shared)
    missing = max(taken - there, _excess(need, room))
    least = f"with {size.context_length} tokens of context" + ("" if wish.asked else " (the smallest useful size)")
    places = "memory" if not room.accelerators else "memory (with accelerators)"
    allowed = "may be used" if room.capped else "is free"
    reason = (
        f"{least} it needs {gigabytes(taken)}, and {gigabytes(there)} of {places} {allowed}: "
        f"{gigabytes(missing)} are missing"
    )
    help_ = ["choose a smaller quantization or model"]
    if wish.asked:
        help_.append("a smaller --ctx-size")
    if room.capped:
        help_.append("a larger --max-vram")
    return reason, f"{', or '.join(help_).capitalize()}; or add machines (--join)."


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
        return f"on the CPU{why}: {host}"
    # The engine counts the output as a layer of the last accelerator; users count the model's own layers.
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
        return f"{told}; the experts of {trial.experts_aside} layers in RAM: {host}"
    return told if total >= layers else f"{told}; the rest on the CPU: {host}"


def _context(size: ContextSize, wish: WantedSize) -> str:
    told = f"context {size.context_length}"
    if size.context_length < wish.best.context_length:
        return f"{told} of {wish.trained or wish.best.context_length} {wish.why_less}"
    if wish.asked:
        reached = wish.trained and wish.trained <= size.context_length
        return f"{told}, the maximum of the model" if reached else f"{told}, as requested"
    if wish.trained > size.context_length:
        return f"{told} of {wish.trained} (more with --ctx-size)"
    return told


def _slots(size: ContextSize, wish: WantedSize) -> list[str]:
    if size.slots >= wish.best.slots:
        return []
    return [f"{size.slots} of {wish.best.slots} parallel requests {wish.why_less}"]
