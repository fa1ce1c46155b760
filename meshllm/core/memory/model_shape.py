"""What of a model matters for memory: what each layer weighs, and what it keeps of the tokens it has seen.

Law: plain numbers, whoever found them: the header of a file (`models/gguf_shape.py`), or a catalogue (`even`). Sizes
are bytes; `keys`, `values` and `state` are numbers of values, whatever type they are kept in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer. `weights`: bytes of all its tensors; `experts`: of those, what belongs to the routed experts.

    `keys` and `values` are kept for each token of context, of the last `window` tokens (0: of all); `state` for each
    request, however long it is. `idle`: the layer is not loaded (it would predict further tokens).
    """

    weights: int = 0
    experts: int = 0
    keys: int = 0
    values: int = 0
    window: int = 0
    state: int = 0
    idle: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model. `input`: bytes of the embeddings, `output`: of what turns the last layer into scores, and of all else
    that is in no layer; `tied`: the head is the embedding (`input` does both).

    `width`: of a token's vector; `inner`: of the widest feed-forward part of a layer without experts, `routed`: of all
    experts together that one token passes; `query`: of all heads of attention together, `latent`: of the same where
    keys are kept compressed (0: they are not). `cached`: the engine keeps something between batches (no encoder does).
    """

    layers: tuple[LayerShape, ...]
    input: int = 0
    output: int = 0
    tied: bool = False
    width: int = 0
    inner: int = 0
    routed: int = 0
    query: int = 0
    latent: int = 0
    vocabulary: int = 0
    experts: int = 0
    experts_used: int = 0
    cached: bool = True

    @property
    def weights(self) -> int:
        """Bytes of all tensors that are loaded."""
        return self.input + self.output + sum(layer.weights for layer in self.layers if not layer.idle)

    @property
    def expert_weights(self) -> int:
        """Bytes of all routed experts."""
        return sum(layer.experts for layer in self.layers)


def even(
    *,
    size: int,
    layers: int,
    kv_heads: int,
    head_length: int,
    width: int = 0,
    inner: int = 0,
    vocabulary: int = 0,
    window: int = 0,
    window_every: int = 0,
) -> ModelShape:
    """A model of which only that is known: `size` bytes in all, spread evenly over its layers.

    `window_every` n: all but every n-th layer keep only `window` tokens.
    """
    each, rest = divmod(size, layers) if layers > 0 else (0, size)
    kept = kv_heads * head_length
    return ModelShape(
        layers=tuple(
            LayerShape(
                each, keys=kept, values=kept, window=window if window_every and (index + 1) % window_every else 0
            )
            for index in range(layers)
        ),
        output=rest,
        width=width,
        inner=inner,
        vocabulary=vocabulary,
    )
