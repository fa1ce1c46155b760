"""Estimates the shape of a model that is known only from the catalogue, for memory forecasts.

The estimates use typical proportions of published models; the header replaces them once the file is here.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

from meshllm.core.memory.model_shape import LayerShape, ModelShape
from meshllm.models.catalog.entry import CatalogEntry

# The catalogue has no layer count for a model without a cache; embedding models have 12 to 28.
USUAL_LAYERS: Final = 24
USUAL_VOCABULARY: Final = 150_000
# Size of a projector that only the hub knows: at half precision most have 0.4 billion parameters, the largest 0.7.
USUAL_PROJECTOR_BYTES: Final = 900_000_000
_INNER_QUARTERS: Final = 14  # 3.5 times the width
# The experts make up nearly all of a mixture.
_EXPERT_PERCENT: Final = 90


def outline(entry: CatalogEntry) -> ModelShape:
    """The known and typical properties of a catalogue model."""
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
    """Estimated bytes of the projector; 0 without vision."""
    if entry.projector is not None:
        return entry.projector.size
    return USUAL_PROJECTOR_BYTES if entry.vision else 0
