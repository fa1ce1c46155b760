"""Prepares bodies of `/v1/embeddings`: `dimensions`, which the engine ignores, is kept by cutting the vectors."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from meshllm.wire.api.engine_bounds import refuse_large
from meshllm.wire.api.prepared import Draft, Prepared
from meshllm.wire.api.refusal import invalid

Event = dict[str, Any]

MAX_DIMENSIONS = 1 << 16


def prepare_embedding(body: Mapping[str, Any]) -> Prepared:
    """A request for embeddings as the engine keeps it; RequestRefused if it cannot."""
    draft = Draft(body)
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise invalid("encoding_format", "'encoding_format' must be 'float' or 'base64'.")
    wanted = body.get("dimensions")
    if wanted is None:
        return draft.prepared()
    refuse_large("dimensions", wanted)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 < wanted <= MAX_DIMENSIONS:
        raise invalid("dimensions", f"'dimensions' must be a whole number of 1 to {MAX_DIMENSIONS}.")
    return draft.prepared(partial(_shortened, wanted))


def _shortened(wanted: int, _ident: str) -> ShortVectors:
    return ShortVectors(wanted)


class ShortVectors:
    """Cuts vectors to their first numbers and gives them the length 1, as OpenAI does."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted

    def event(self, event: Event) -> Iterable[Event]:
        """Embeddings are not streamed."""
        return (event,)

    def whole(self, body: Event) -> Event:
        """The answer with short vectors; RequestRefused if those of the model are shorter."""
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
        if len(vector) < self._wanted:
            message = f"'dimensions' is {self._wanted}; the vectors of this model have {len(vector)} numbers."
            raise invalid("dimensions", message)
        if len(vector) == self._wanted:
            return vector
        short = [float(number) for number in vector[: self._wanted]]
        length = math.sqrt(sum(number * number for number in short))
        return [number / length for number in short] if length else short
