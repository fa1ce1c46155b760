"""Derives from a header what the vectors of an embedding model bear."""

from __future__ import annotations

import re
from typing import Final

from meshllm.core.serving.vector_traits import UNKNOWN_VECTORS, VectorTraits
from meshllm.core.snapshot import Purpose

from .header import Header
from .purpose import usage

NESTED: Final = re.compile(
    r"nomic[-_ ]embed[-_ ]text[-_ ]v(1\.5|2)|mxbai[-_ ]embed|arctic[-_ ]embed[-_ ]m[-_ ]v1\.5"
    r"|arctic[-_ ]embed[-_ ][ml][-_ ]v2|qwen3[-_ ](vl[-_ ])?embedding|embedding[-_ ]?gemma"
    r"|jina[-_ ]embeddings[-_ ]v[345]"
    r"|jina[-_ ]code[-_ ]embeddings|jina[-_ ]clip[-_ ]v2|gte[-_ ]multilingual|modernbert[-_ ]embed"
    r"|kalm[-_ ]embedding|nemotron[-_ ]embed",
    re.IGNORECASE,
)
"""Families whose model cards state Matryoshka representation learning. No file says so, hence the names."""


def vector_traits(header: Header, name: str) -> VectorTraits:
    """The vectors of the model of `header`, which is served as `name`; unknown for one that makes no embeddings."""
    if usage(header).purpose is not Purpose.EMBED:
        return UNKNOWN_VECTORS
    return VectorTraits(header.embedding_length, bool(NESTED.search(header.name) or NESTED.search(name)))
