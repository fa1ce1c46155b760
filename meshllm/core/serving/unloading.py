"""Which models a node unloads: idle ones after a time, and the least recently used one if another needs its memory.

Pure. A model that processes a request, or has one waiting, is never chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshllm.core.snapshot import ModelOrigin, ModelState, ServerPhase
from meshllm.util.format import gigabytes

# A model is unloaded for another one if it has been idle for so long (seconds): the requests that waited for it have
# reached it by then, and are reported (every half second).
IDLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Room:
    """How room is made for a model. `unload`: the model to unload first; `waits`: room comes by waiting, for a process
    that ends or a model that becomes idle; neither: it cannot be made."""

    unload: str = ""
    waits: bool = False


def room_for(model: ModelState, others: Iterable[ModelState], now: float) -> Room:
    """How room is made for `model`, which was measured and does not fit beside `others`."""
    assert model.measured is not None
    others = list(others)
    if model.origin is ModelOrigin.BESIDE and not model.reloads:
        return Room()
    if any(other.server is ServerPhase.STOPPING for other in others):
        return Room(waits=True)
    if any(other.server is ServerPhase.STARTING and _yields(other, model) for other in others):
        return Room(waits=True)  # what it takes is known once it serves
    candidates = [other for other in others if _yields(other, model) and _is_alone(other)]
    freed = sum(_memory(other) for other in candidates)
    if not candidates or not model.measured.least_bytes:
        return Room()
    if model.measured.free_bytes + freed < model.measured.least_bytes:
        return Room()
    idle = [
        (other.origin is ModelOrigin.LOADED, other.idle_since, other.name)  # what the owner loaded comes last
        for other in candidates
        if other.idle_since is not None and now - other.idle_since >= IDLE_SECONDS
    ]
    return Room(unload=min(idle)[2]) if idle else Room(waits=True)


def idle_deadline(model: ModelState, seconds: float | None) -> float | None:
    """When `model` has been idle for `seconds` and is unloaded; None: it is not."""
    if seconds is None or model.idle_since is None or not _is_alone(model):
        return None
    return model.idle_since + seconds


def no_room_text(model: ModelState, others: Iterable[ModelState]) -> str:
    """Why `model` is not served beside `others`, for users."""
    assert model.measured is not None
    beside = ", ".join(sorted(other.name for other in others if other.server is not ServerPhase.NONE))
    found = f"it does not fit beside {beside}" if beside else "it does not fit on this node"
    if not model.measured.least_bytes:
        return found
    return f"{found}: it needs {gigabytes(model.measured.least_bytes)}, {gigabytes(model.measured.free_bytes)} are free"


def gain(models: Iterable[ModelState]) -> int:
    """Bytes that this node would free for a model which a request asks for."""
    return sum(_memory(model) for model in models if model.origin is ModelOrigin.MESH and _is_alone(model))


def _yields(model: ModelState, other: ModelState) -> bool:
    """Whether `model` may be unloaded for `other`: what the owner loaded is not, for what the mesh requests."""
    if model.origin is ModelOrigin.LOADED:
        return other.origin is not ModelOrigin.MESH
    return model.origin is ModelOrigin.MESH


def _is_alone(model: ModelState) -> bool:
    """Whether `model` is served by this node without workers, which stopping would disturb."""
    return model.wanted and model.server is ServerPhase.SERVING and (model.split is None or model.split.lease is None)


def _memory(model: ModelState) -> int:
    return model.server_facts.memory if model.server_facts is not None else 0
