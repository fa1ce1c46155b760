"""What a model will take, from its shape alone: before there is an engine to ask, or a file.

Law: arithmetic, no question to anybody. Weights are exact, and so is what is kept of the tokens, for architectures that
`models/gguf_shape.py` knows. What computing takes is an estimate of the fullest moment of a batch. Measured against the
engine on a processor, for eleven toy models and the outlines of nine of real size (1 B to 671 B): that estimate was
13 % too low to 11 % too high, the sum off by 3 % at most for the toys and by 0.2 % for the real ones (`scripts/bench
memory`). Accelerators were not measured. Not in it: a second copy of a tied embedding, where the output is on an
accelerator or repacked for the processor (2 % of the one toy that has it).
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.model_shape import LayerShape, ModelShape

# The engine's own, where nobody chooses: what it computes in one go.
MICRO_BATCH = 512
# Caches are made in steps of so many tokens.
STEP = 256
HALF, SINGLE = 2, 4  # bytes of a number kept of a token, and of one of a state or an intermediate result
# The program itself: its libraries (15 MB, measured), its threads (5 to 8 MB), and what it keeps of each word of the
# vocabulary (0.3 kB).
PROCESS = 28 << 20
PROCESS_PER_WORD = 384


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes. `weights` and `cache` layer by layer; `rest` is the embeddings' and the head's weights, `compute` what a
    batch takes while it is computed, `scores` what the words are weighed in, `process` the program itself."""

    weights: tuple[int, ...]
    cache: tuple[int, ...]
    rest: int
    compute: int
    scores: int
    process: int

    @property
    def total(self) -> int:
        return sum(self.weights) + sum(self.cache) + self.rest + self.compute + self.scores + self.process


def forecast(
    shape: ModelShape, size: ContextSize, *, micro_batch: int = MICRO_BATCH, embeds: bool = False
) -> MemoryEstimate:
    """What `shape` takes for `size`. `embeds`: it gives vectors, and the engine has a row of scores for every token."""
    cells = padded(size.context_length)
    cache = tuple(cache_bytes(layer, cells, size.slots, micro_batch) for layer in shape.layers)
    return MemoryEstimate(
        weights=tuple(0 if layer.idle else layer.weights for layer in shape.layers),
        cache=cache,
        rest=shape.input + shape.output,
        compute=_compute(shape, cells, micro_batch) if shape.cached else _compute(shape, 0, micro_batch),
        scores=score_bytes(shape.vocabulary, size.slots, micro_batch, embeds=embeds),
        process=process_bytes(shape.vocabulary),
    )


def padded(tokens: int) -> int:
    """Tokens of context as the engine rounds them up."""
    return -(-tokens // STEP) * STEP


def cache_bytes(layer: LayerShape, cells: int, slots: int, micro_batch: int = MICRO_BATCH) -> int:
    """What `layer` keeps of `slots` requests of `cells` tokens each."""
    held = min(cells, padded(layer.window + micro_batch)) if layer.window else cells
    return slots * (HALF * (layer.keys + layer.values) * held + SINGLE * layer.state)


def score_bytes(vocabulary: int, slots: int, micro_batch: int, *, embeds: bool) -> int:
    """The buffer of the words' scores. Cleared, so really used, at the first batch that is full: 8 GB for embeddings of
    8192 tokens and a vocabulary of 250k words."""
    return SINGLE * vocabulary * (micro_batch if embeds else slots)


def process_bytes(vocabulary: int) -> int:
    """The engine's process without any buffer."""
    return PROCESS + PROCESS_PER_WORD * vocabulary


def checkpoint_bytes(shape: ModelShape) -> int:
    """A copy of what a request has in layers that forget: the engine keeps some, to be able to go back. 0: none do."""
    return sum(HALF * (layer.keys + layer.values) * layer.window + SINGLE * layer.state for layer in shape.layers)


def _compute(shape: ModelShape, cells: int, micro_batch: int) -> int:
    """Results that live at the same time, for each token of a batch, and for each which others it may look at."""
    attends = any(layer.keys and not layer.window for layer in shape.layers)
    windows = {layer.window for layer in shape.layers if layer.window}
    masks = cells * attends + sum(min(cells, padded(window + micro_batch)) for window in windows)
    recurrent = any(layer.state and not layer.keys for layer in shape.layers)
    alive = max(
        3 * shape.inner + 4 * shape.width,
        2 * (shape.experts_used * shape.width + shape.routed),
        3 * shape.query + max(5 * shape.width, 2 * shape.latent),
        13 * shape.width * recurrent,
    )
    return micro_batch * (SINGLE * alive + HALF * masks)
