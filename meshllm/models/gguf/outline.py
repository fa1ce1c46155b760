"""The shape of a model that is only known from the catalogue, for a forecast of what it takes.

Law: an estimate, for lists alone; a file that is here is asked itself. What is kept of tokens is exact, weights are
spread evenly, and the widths that decide what computing takes are guessed from the number of parameters: a layer of a
usual model has some twelve times its width squared, and its inner part is three to four times as wide.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

from meshllm.core.memory.model_shape import LayerShape, ModelShape
from meshllm.models.catalog.entry import CatalogEntry

# Of a model that keeps nothing of tokens the catalogue does not say how many layers it has; embedders have 12 to 28.
USUAL_LAYERS: Final = 24
USUAL_VOCABULARY: Final = 150_000
# What a projector weighs where only the hub knows: at half precision most have 0.4 billion parameters, the largest 0.7.
USUAL_PROJECTOR_BYTES: Final = 900_000_000
_INNER_QUARTERS: Final = 14  # 3.5 times the width
# A router's experts make up nearly all of a mixture.
_EXPERT_PERCENT: Final = 90


def outline(entry: CatalogEntry) -> ModelShape:
    """What is known, and what is usual, of a model of the catalogue."""
    caches = [layers for layers in entry.cache for _ in range(layers.layers)]
    count = len(caches) or USUAL_LAYERS
    each, rest = divmod(entry.size, count)
    active = entry.active_parameters or entry.parameters
    width = isqrt(active // count // 12)
    experts = 0 if entry.dense else each * _EXPERT_PERCENT // 100
    if caches:
        layers = tuple(
            LayerShape(each, experts, kept.heads * kept.key_length, kept.heads * kept.value_length, kept.window)
            for kept in caches
        )
    else:
        layers = (LayerShape(each, experts),) * count
    return ModelShape(
        layers=layers,
        output=rest,
        width=width,
        inner=width * _INNER_QUARTERS // 4,
        vocabulary=USUAL_VOCABULARY,
        cached=bool(caches),
    )


def projector_estimate(entry: CatalogEntry) -> int:
    """Bytes that what lets it see takes; 0 for a model that does not."""
    if entry.projector is not None:
        return entry.projector.size
    return USUAL_PROJECTOR_BYTES if entry.vision else 0
