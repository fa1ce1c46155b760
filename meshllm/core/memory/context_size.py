"""Context lengths and numbers of slots to try for a model, best first.

Coding agents expect 32k tokens of context: each slot gets that if the model was trained for it; more only on request.
Slots are given up before context: a prompt that does not fit is an error, a queue is a delay.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.snapshot import Purpose

DEFAULT_CONTEXT = 32768
# Below this a coding agent's system prompt alone does not fit.
SMALLEST_CONTEXT = 4096
# Texts for embeddings and reranking are short: OpenAI's embeddings take 8192 tokens, the first BERT models 512.
DEFAULT_TEXT = 8192
SMALLEST_TEXT = 512
DEFAULT_SLOTS = 4
# For a model file without a context length.
UNKNOWN_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class ContextSize:
    """`context_length` tokens for each of `slots` parallel requests."""

    context_length: int
    slots: int


def candidates(
    trained: int, asked: int | None, purpose: Purpose = Purpose.GENERATE, *, slots_are_free: bool = False
) -> tuple[ContextSize, ...]:
    """The sizes to try, best first. `trained`: context length of the model (0: unknown); `asked`: `--ctx-size`.

    A requested context is kept however little memory there is, up to the model's own: the engine would not use more.
    `slots_are_free`: the model keeps nothing between batches, so fewer slots would save no memory.
    """
    asked = min(asked, trained) if asked and trained else asked
    if purpose is Purpose.GENERATE:
        usual, smallest = DEFAULT_CONTEXT, SMALLEST_CONTEXT
    else:
        usual, smallest = DEFAULT_TEXT, SMALLEST_TEXT
    contexts = [asked or min(trained or UNKNOWN_CONTEXT, usual)]
    while not asked and contexts[-1] // 2 >= smallest:
        contexts.append(contexts[-1] // 2)
    slots = [DEFAULT_SLOTS]
    while slots[-1] > 1 and not slots_are_free:
        slots.append(slots[-1] // 2)
    return tuple(ContextSize(context, count) for context in contexts for count in slots)
