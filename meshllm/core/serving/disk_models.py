"""The models of this node's disk that a request makes it load: which they are, and how much memory each may have."""

from __future__ import annotations

from collections.abc import Callable, Collection

from meshllm.core.memory.observation import MachineFacts, published
from meshllm.core.serving import unloading
from meshllm.core.serving.placement import CONTEXT_PART
from meshllm.core.snapshot import ModelState, ServerPhase


class DiskModels:
    """What this node could load. `room`: bytes that a model which a request asks for may have (see `NodeRecord`)."""

    def __init__(self, *, allowed: bool) -> None:
        """`allowed`: the owner lets requests load models of the disk."""
        self._allowed = allowed
        self.room = 0

    def observe(self, free: int, models: Collection[ModelState]) -> None:
        """`free` bytes are free now, beside `models`. While a model is loaded or stopped, its part is not known."""
        if self._allowed and all(model.server in (ServerPhase.NONE, ServerPhase.SERVING) for model in models):
            self.room = published(self.room, free + unloading.gain(models))

    def available(self, machine: MachineFacts, served: Collection[str], may_take: Callable[[str], bool]) -> list[str]:
        """The models of the disk that a request loads, without those that are `served` here, and without further names
        of the same files. `may_take`: whether this node may serve a model for others."""
        if not self.room:
            return []
        sizes = (*machine.model_sizes, *[0] * len(machine.models))
        others = {alias for alias, _ in machine.aliases}
        return [
            name
            for name, size in zip(machine.models, sizes, strict=False)
            if size * (1 + CONTEXT_PART) <= self.room
            if name not in served and name not in others and may_take(name)
        ]
