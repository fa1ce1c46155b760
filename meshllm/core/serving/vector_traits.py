"""What the vectors of an embedding model bear."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VectorTraits:
    """`size`: numbers of a vector (0: unknown). `nested`: the model was trained so that the first numbers of a vector
    are a vector of their own (Matryoshka representation learning); None: nothing is known of the model."""

    size: int = 0
    nested: bool | None = None


UNKNOWN_VECTORS = VectorTraits()
"""Of a model whose file is not on this node."""
