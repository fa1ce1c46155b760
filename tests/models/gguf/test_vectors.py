"""Whether the vectors of an embedding model may be cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshllm.core.serving.vector_traits import UNKNOWN_VECTORS, VectorTraits
from meshllm.models.gguf.header import read_header
from meshllm.models.gguf.vectors import NESTED, vector_traits
from tests.engine_samples import WIDTH, causal_embedder, embedder, reranker


@pytest.mark.parametrize(
    "name",
    [
        "nomic-embed-text-v1.5.Q4_K_M", "nomic-embed-text-v2-moe", "mxbai-embed-large-v1", "Qwen3-Embedding-0.6B-Q8_0",
        "embeddinggemma-300m", "snowflake-arctic-embed-m-v1.5", "snowflake-arctic-embed-l-v2.0", "jina-embeddings-v3",
    ],
)  # fmt: skip
def test_trained_families_are_known_by_name(name: str) -> None:
    assert NESTED.search(name)


@pytest.mark.parametrize(
    "name",
    [
        "all-MiniLM-L6-v2",
        "bge-m3",
        "nomic-embed-text-v1",
        "e5-mistral-7b",
        "snowflake-arctic-embed-m",
        "jina-embeddings-v2",
    ],
)
def test_others_are_not(name: str) -> None:
    assert not NESTED.search(name)


def test_traits_of_files(tmp_path: Path) -> None:
    header = read_header(embedder(tmp_path / "a.gguf"))
    assert vector_traits(header, "a") == VectorTraits(WIDTH, nested=False)
    assert vector_traits(header, "mxbai-embed-xsmall") == VectorTraits(WIDTH, nested=True)
    assert vector_traits(read_header(causal_embedder(tmp_path / "c.gguf")), "c").size == WIDTH
    assert vector_traits(read_header(reranker(tmp_path / "r.gguf")), "r") == UNKNOWN_VECTORS
