"""How much context, and for how many requests at a time, a model is served with: what to try, best first.

Agents expect 32k tokens of context (design §7): that is what each slot gets where the model was made for as much; more
only when it is asked for. Slots go before context: a prompt that does not fit is an error, a queue is a delay.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.snapshot import Purpose

DEFAULT_CONTEXT = 32768
# Below this a coding agent's system prompt alone does not fit.
SMALLEST_CONTEXT = 4096
# Texts that are turned into vectors or judged are short: OpenAI's embeddings take 8192 tokens, the first BERTs 512.
DEFAULT_TEXT = 8192
SMALLEST_TEXT = 512
DEFAULT_SLOTS = 4
# What a model's file that does not say gets.
UNKNOWN_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class ContextSize:
    """`context_length` tokens for each of `slots` requests at a time."""

    context_length: int
    slots: int


def candidates(
    trained: int, asked: int | None, purpose: Purpose = Purpose.GENERATE, *, slots_are_free: bool = False
) -> tuple[ContextSize, ...]:
    """What to try, best first. `trained`: tokens the model was made for (0: unknown); `asked`: `--ctx-size`, if given.

    A size that was asked for is kept, however little memory there is; only the slots give way. But no model is given
    more than it was made for: the engine would not use it, and an encoder has no positions beyond. `slots_are_free`:
    the model keeps nothing between batches, so fewer slots would save no memory.
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
