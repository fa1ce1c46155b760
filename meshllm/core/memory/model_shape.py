"""What of a model determines its memory: bytes of each layer, and values kept for each token. Pure.

Made from a file's header (`models/gguf/shape.py`) or from a catalogue entry (`even`). Sizes are bytes; `keys`, `values`
and `state` count values, whatever their type.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer. `weights`: bytes of all tensors; `experts`: the part of the routed experts.

    `keys` and `values` are kept for each token, for the last `window` tokens (0: for all); `state` for each request.
    `idle`: the layer is not loaded (it predicts further tokens).
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
    """A model. `input`: bytes of the embedding; `output`: bytes of the output head and of all tensors outside of
    layers; `tied`: the embedding is the output head, too.

    `width`: of a token's vector. `inner`: of the widest feed-forward block without experts. `routed`: of all experts
    together that a token passes. `query`: of all attention heads together; `latent`: of the same with compressed keys
    (0: not compressed). `cached`: the engine keeps a context cache (not for encoders).
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
    """A model of `size` bytes, spread evenly over its layers, when no more is known.

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
