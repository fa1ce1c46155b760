"""Derives from a header what a model is for: text generation, embeddings or reranking.

A generation model is not used for embeddings although the engine could (`--embeddings --pooling mean`): they would be
worse than those of the smallest embedding model, and cost 310 MB for logits (512 tokens, 152k vocabulary) and smaller
prompt batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshllm.core.snapshot import Purpose

from .header import POOLING_LAST, POOLING_NONE, POOLING_RANK, Header

ENCODERS: Final = frozenset(
    {
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
        "gemma-embedding",
    }
)  # fmt: skip
"""Encoder architectures: they have no KV cache and cannot generate text."""

DIFFUSION: Final = frozenset({"dream", "llada", "llada-moe", "rnd1"})
"""Diffusion language models: bidirectional attention, not autoregressive."""


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """The start options of a model.

    `pooling`: llama-server's `--pooling`, if the file does not state it. `at_once`: a text is computed in one batch, so
    the batch size bounds its tokens.
    """

    purpose: Purpose
    pooling: str | None = None
    at_once: bool = False


def usage(header: Header) -> ModelUsage:
    """How the engine is started for the model of `header`."""
    both_ways = header.architecture in ENCODERS or not (header.causal or header.architecture in DIFFUSION)
    if header.pooling == POOLING_RANK:
        return ModelUsage(Purpose.RERANK, at_once=both_ways)
    if header.pooling != POOLING_NONE:
        # A causal model with last-token pooling can split a text (llama-server: can_split).
        return ModelUsage(Purpose.EMBED, at_once=both_ways or header.pooling != POOLING_LAST)
    if not both_ways:
        return ModelUsage(Purpose.GENERATE)
    if header.classifier:
        return ModelUsage(Purpose.RERANK, "rank", at_once=True)  # older conversions of bge-reranker and similar models
    # Without a stated pooling, use mean pooling as sentence-transformers does; the engine would refuse to answer.
    return ModelUsage(Purpose.EMBED, "mean", at_once=True)
