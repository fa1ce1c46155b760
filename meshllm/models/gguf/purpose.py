"""What a model is for, read off its header: it writes text, turns texts into vectors, or judges how well two texts fit.

Law: a pure function of the header. A model that writes text is not asked for embeddings, though the engine could be
made to give some (`--embeddings --pooling mean`): they come from a model never trained for it and are worse than those
of the smallest that was, no caller could tell the difference, and the engine pays for the option with a row of the
vocabulary's size for every token of a batch (310 MB at 512 tokens and 152k words) and a smaller batch for prompts.
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
    """How a model is to be started.

    `pooling`: what to tell the engine because the file does not, as the name of llama-server's `--pooling`. `at_once`:
    the engine must compute a text in one go, so that its (micro) batch bounds what a text may have in tokens.
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
