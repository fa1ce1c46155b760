"""Prepares bodies of `/v1/embeddings`: `dimensions`, which the engine ignores, is kept by cutting the vectors.

Only vectors of models that were trained for it are cut: of others the first numbers alone mean little.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from meshllm.core.serving.vector_traits import UNKNOWN_VECTORS, VectorTraits
from meshllm.wire.api.engine_bounds import refuse_large
from meshllm.wire.api.prepared import Draft, Prepared
from meshllm.wire.api.refusal import invalid, unsupported

Event = dict[str, Any]

MAX_DIMENSIONS = 1 << 16


def prepare_embedding(body: Mapping[str, Any], vectors: VectorTraits = UNKNOWN_VECTORS) -> Prepared:
    """A request for embeddings as the engine keeps it; RequestRefused if it cannot. `vectors`: those of the model."""
    draft = Draft(body)
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise invalid("encoding_format", "'encoding_format' must be 'float' or 'base64'.")
    wanted = body.get("dimensions")
    if wanted is None:
        return draft.prepared()
    refuse_large("dimensions", wanted)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 < wanted <= MAX_DIMENSIONS:
        raise invalid("dimensions", f"'dimensions' must be a whole number of 1 to {MAX_DIMENSIONS}.")
    if vectors.size:
        _check(wanted, vectors.size, vectors)
    return draft.prepared(partial(_shortened, wanted, vectors))


def _shortened(wanted: int, vectors: VectorTraits, _ident: str) -> ShortVectors:
    return ShortVectors(wanted, vectors)


def _check(wanted: int, size: int, vectors: VectorTraits) -> None:
    """Raises RequestRefused if vectors of `size` numbers cannot have `wanted` ones."""
    if wanted > size:
        raise invalid("dimensions", f"'dimensions' is {wanted}; the vectors of this model have {size} numbers.")
    if wanted < size and not vectors.nested:
        message = (
            f"'dimensions' is {wanted}; the vectors of this model have {size} numbers, and it is not known to be "
            "trained for shorter ones (Matryoshka). Leave 'dimensions' out, or use another model."
        )
        raise unsupported("dimensions", message)


class ShortVectors:
    """Cuts vectors to their first numbers and gives them the length 1, as OpenAI does."""

    def __init__(self, wanted: int, vectors: VectorTraits) -> None:
        self._wanted = wanted
        self._vectors = vectors

    def event(self, event: Event) -> Iterable[Event]:
        """Embeddings are not streamed."""
        return (event,)

    def whole(self, body: Event) -> Event:
        """The answer with short vectors; RequestRefused if those of the model cannot be cut so."""
        data = body.get("data")
        if not isinstance(data, list):
            return body
        return {**body, "data": [self._entry(entry) if isinstance(entry, dict) else entry for entry in data]}

    def _entry(self, entry: Event) -> Event:
        vector = entry.get("embedding")
        if isinstance(vector, str):
            try:
                raw = base64.b64decode(vector, validate=True)
                numbers = list(struct.unpack(f"<{len(raw) // 4}f", raw))
            except (binascii.Error, struct.error):
                return entry
            short = self._cut(numbers)
            return {**entry, "embedding": base64.b64encode(struct.pack(f"<{len(short)}f", *short)).decode()}
        return {**entry, "embedding": self._cut(vector)} if isinstance(vector, list) else entry

    def _cut(self, vector: list[Any]) -> list[float]:
        _check(self._wanted, len(vector), self._vectors)
        if len(vector) == self._wanted:
            return vector
        short = [float(number) for number in vector[: self._wanted]]
        length = math.sqrt(sum(number * number for number in short))
        return [number / length for number in short] if length else short
