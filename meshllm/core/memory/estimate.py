"""Estimates the memory a model needs from its shape alone, before there is an engine or a file. Pure.

Weights and context cache are exact for the architectures that `models/gguf/shape.py` knows. The compute buffers are an
estimate of the peak of a batch: against the engine on a CPU 13 % too low to 11 % too high, for eleven toy models and
the outlines of nine real ones (1 B to 671 B); the sum was off by at most 3 % (toys) and 0.2 % (real ones), by
`scripts/bench memory`. Accelerators were not measured. Not included: the copy of a tied embedding that is on an
accelerator or repacked for the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.model_shape import LayerShape, ModelShape

# Tokens that the engine computes in one batch by default.
MICRO_BATCH = 512
# The context cache is allocated in steps of this many tokens.
STEP = 256
HALF, SINGLE = 2, 4  # bytes of a number kept of a token, and of one of a state or an intermediate result
# The engine's process: libraries (15 MB, measured), threads (5 to 8 MB), and 0.3 kB for each token of the vocabulary.
PROCESS = 28 << 20
PROCESS_PER_WORD = 384


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes. `weights` and `cache`: by layer. `rest`: weights of the embedding and the output. `compute`: buffers of a
    batch. `scores`: the logits. `process`: the engine's process."""

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
    """The memory of `shape` for `size`. `embeds`: an embedding model; the engine keeps logits for every token of it."""
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
    """Tokens of context, rounded up as the engine does."""
    return -(-tokens // STEP) * STEP


def cache_bytes(layer: LayerShape, cells: int, slots: int, micro_batch: int = MICRO_BATCH) -> int:
    """Bytes of the context cache of `layer` for `slots` requests of `cells` tokens each."""
    held = min(cells, padded(layer.window + micro_batch)) if layer.window else cells
    return slots * (HALF * (layer.keys + layer.values) * held + SINGLE * layer.state)


def score_bytes(vocabulary: int, slots: int, micro_batch: int, *, embeds: bool) -> int:
    """Bytes of the logits. The first full batch clears, and so uses, all of them: 8 GB for embeddings of 8192 tokens
    and a vocabulary of 250k tokens."""
    return SINGLE * vocabulary * (micro_batch if embeds else slots)


def process_bytes(vocabulary: int) -> int:
    """Bytes of the engine's process without its buffers."""
    return PROCESS + PROCESS_PER_WORD * vocabulary


def checkpoint_bytes(shape: ModelShape) -> int:
    """Bytes of one checkpoint of a request: the state of its sliding-window and recurrent layers. 0: there are none."""
    return sum(HALF * (layer.keys + layer.values) * layer.window + SINGLE * layer.state for layer in shape.layers)


def _compute(shape: ModelShape, cells: int, micro_batch: int) -> int:
    """Bytes of the intermediate results that exist at the same time, and of the attention masks, for one batch."""
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
