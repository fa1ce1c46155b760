"""Derives the memory shape of a model from its header: sliding windows, shared caches, recurrent states.

The rules per architecture follow llama.cpp at the pinned commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meshllm.core.memory.model_shape import LayerShape, ModelShape

from .cursor import Damage
from .metadata import Metadata
from .tensors import LayerBytes, TensorSums

MAX_LAYERS: Final = 512  # the engine aborts above
MAX_EXPERTS: Final = 1024

NO_CACHE: Final = frozenset(
    {
        "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
        "gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1",
    }
)  # fmt: skip
"""Architectures without a cache."""

RECURRENT: Final = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
"""Recurrent architectures: all layers keep a state instead of a cache."""

BY_KV_HEADS: Final = frozenset(
    {
        "jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next",
        "nemotron_h", "nemotron_h_moe",
    }
)  # fmt: skip
"""Hybrid architectures in which a layer without key/value heads is recurrent."""

BY_INTERVAL: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
"""Hybrid architectures in which every n-th layer has attention, unless the file lists them."""


@dataclass(frozen=True, slots=True)
class AttentionWindows:
    """Layers with a sliding window: all but every n-th (`every`; 0: all, 1: none), which is the first or last of each
    n.

    The window is the file's, 0 if missing; `default` replaces a missing one, `fixed` any. `layers`: only models with
    this many layers have windows (0: all).
    """

    every: int
    full_first: bool = False
    default: int = 0
    fixed: int = 0
    layers: int = 0


WINDOWS: Final = {
    "afmoe": AttentionWindows(4),
    "cohere2": AttentionWindows(4),
    "cohere2moe": AttentionWindows(4, full_first=True),
    "deepseek4": AttentionWindows(0),
    "exaone4": AttentionWindows(4, default=4096, layers=64),
    "exaone-moe": AttentionWindows(4),
    "gemma2": AttentionWindows(2, default=4096),
    "gemma3": AttentionWindows(6),
    "gemma3n": AttentionWindows(5),
    "gemma4": AttentionWindows(1),
    "gpt-oss": AttentionWindows(2),
    "laguna": AttentionWindows(4, full_first=True),
    "lfm2": AttentionWindows(0),
    "llama4": AttentionWindows(4, default=8192, fixed=8192),
    "mellum": AttentionWindows(4),
    "mimo2": AttentionWindows(1),
    "olmo2": AttentionWindows(4),
    "plamo3": AttentionWindows(8),
    "smallthinker": AttentionWindows(4, full_first=True, fixed=4096),
    "step35": AttentionWindows(1),
}
"""Architectures with a cache of the window's size. Others may name a window (phi3 does) and have none."""


def shape_of(metadata: Metadata, table: TensorSums) -> ModelShape:
    """The shape of the model in `metadata` and `table`. Raises Damage for numbers that the engine refuses."""
    architecture = metadata.text("general.architecture")

    def number(key: str) -> int:
        return metadata.number(f"{architecture}.{key}")

    count = number("block_count")
    if count > MAX_LAYERS:
        raise Damage(f"it claims {count} layers, the limit is {MAX_LAYERS}")
    experts, used = number("expert_count"), number("expert_used_count")
    if experts > MAX_EXPERTS or used > experts:
        raise Damage(f"it claims {used} of {experts} experts per token; the limit is {MAX_EXPERTS}")
    keeps = _CacheLayout(metadata, architecture, count)
    weights = [table.layers.get(index, LayerBytes()) for index in range(count)]
    stray = sum(layer.all for index, layer in table.layers.items() if index >= count)
    # Mixtures may state the width of a dense part that no layer has.
    dense = not experts or any(not layer.experts for layer in weights)
    each = number("expert_feed_forward_length") or number("feed_forward_length")
    shared = number("expert_shared_feed_forward_length") or each * number("expert_shared_count")
    return ModelShape(
        layers=tuple(keeps.layer(index, layer) for index, layer in enumerate(weights)),
        input=table.input,
        output=table.other + stray,
        tied=table.input > 0 and not table.head,
        width=number("embedding_length"),
        inner=number("feed_forward_length") * dense,
        routed=(each * used + shared) if experts else 0,
        query=keeps.query,
        latent=keeps.latent,
        vocabulary=metadata.tokens or number("vocab_size"),
        experts=experts,
        experts_used=used,
        cached=architecture not in NO_CACHE,
    )


class _CacheLayout:
    """The caches of one model's layers."""

    def __init__(self, metadata: Metadata, architecture: str, count: int) -> None:
        self._metadata = metadata
        self._architecture = architecture
        self._count = count
        # Layers for multi-token prediction at the end are loaded and, by default, not used.
        self._trunk = count - min(count, self._number("nextn_predict_layers"))
        self._heads = self._list("attention.head_count")
        given = f"{architecture}.attention.head_count_kv" in metadata.values
        self._kv_heads = self._list("attention.head_count_kv") if given else self._heads
        self._inner = self._list("feed_forward_length")
        self._recurrent = self._recurrent_layers()
        self._windows = self._window_layers()
        self._mla = self._number("attention.key_length_mla") > 0 and self._number("attention.value_length_mla") > 0
        self._owners = self._layers_with_cache()

    def _number(self, key: str) -> int:
        return self._metadata.number(f"{self._architecture}.{key}")

    def _list(self, key: str) -> tuple[int, ...]:
        return self._metadata.by_layer(f"{self._architecture}.{key}", self._count)

    def layer(self, index: int, weights: LayerBytes) -> LayerShape:
        """The shape of layer `index`."""
        keys = values = state = 0
        if self._architecture not in NO_CACHE and index < self._trunk:
            if self._recurrent[index]:
                state = self._state()
            if self._attends(index):
                keys = self._head("key_length", index) * self._kv_heads[index]
                values = 0 if self._mla else self._head("value_length", index) * self._kv_heads[index]
        window = self._windows[index] if keys else 0
        return LayerShape(weights.all, weights.experts, keys, values, window, state, idle=index >= self._trunk)

    @property
    def latent(self) -> int:
        """Query length of all heads for compressed keys (latent attention); 0 without compression."""
        return self._number("attention.key_length") * max(self._heads, default=0) * self._mla

    @property
    def query(self) -> int:
        """Query length of all heads."""
        length = self._number("attention.key_length_mla") if self._mla else 0
        return max(
            ((length or self._head("key_length", index)) * heads for index, heads in enumerate(self._heads)), default=0
        )

    def _attends(self, index: int) -> bool:
        if self._architecture == "falcon-h1":
            return True
        if self._architecture.startswith("nemotron_h") and self._inner[index]:
            return False
        return not self._recurrent[index] and index < self._owners

    def _head(self, which: str, index: int) -> int:
        """Key or value length of one head."""
        even = self._number("embedding_length") // self._heads[0] if self._heads and self._heads[0] else 0
        usual = self._number(f"attention.{which}") or even
        return (self._number(f"attention.{which}_swa") or usual) if self._windows[index] else usual

    def _layers_with_cache(self) -> int:
        """The number of layers with a cache of their own; later layers share theirs."""
        if self._architecture == "gemma3n":
            return 20
        if self._architecture == "gemma4":
            return self._count - min(self._count, self._number("attention.shared_kv_layers"))
        return self._count

    def _recurrent_layers(self) -> Sequence[bool | int]:
        architecture = self._architecture
        if architecture in RECURRENT or architecture == "falcon-h1":
            return (True,) * self._count
        if architecture in BY_KV_HEADS:
            nemotron = architecture.startswith("nemotron_h")
            return [
                not heads and not (nemotron and inner) for heads, inner in zip(self._kv_heads, self._inner, strict=True)
            ]
        if architecture in BY_INTERVAL:
            if f"{architecture}.attention.recurrent_layers" in self._metadata.values:
                return self._list("attention.recurrent_layers")
            every = self._number("full_attention_interval") or BY_INTERVAL[architecture]
            return [(index + 1) % every != 0 for index in range(self._count)]
        return (False,) * self._count

    def _window_layers(self) -> Sequence[int]:
        """Window of each layer in tokens, 0 for full attention."""
        rule, key = WINDOWS.get(self._architecture), f"{self._architecture}.attention.sliding_window"
        if rule is None or rule.layers not in (0, self._count):
            return (0,) * self._count
        said = self._metadata.number(key) if key in self._metadata.values else rule.default
        size = (rule.fixed or said) if said else 0
        pattern = self._metadata.values.get(f"{key}_pattern")
        if isinstance(pattern, tuple):
            return [size if windowed else 0 for windowed in self._list("attention.sliding_window_pattern")]
        every = self._number("attention.sliding_window_pattern") or rule.every
        full = 0 if rule.full_first else every - 1
        return [size if every == 0 or index % every != full else 0 for index in range(self._count)]

    def _state(self) -> int:
        """State values of a recurrent layer per request: convolution inputs and state."""
        width, heads = self._number("embedding_length"), self._heads[0] if self._heads else 0
        if wkv := self._number("wkv.head_size"):
            return (self._number("token_shift_count") or 2) * width + width * wkv
        if cache := self._number("shortconv.l_cache"):
            return width * (cache - 1)
        conv = self._number("ssm.conv_kernel")
        if head := self._number("kda.head_dim"):
            return 3 * (conv - 1 if conv else 3) * heads * head + head * head * heads
        if self._architecture == "minimax-01":
            head = self._number("attention.key_length") or (width // heads if heads else 0)
            return head * head * heads
        inner, state, groups = (self._number(f"ssm.{key}") for key in ("inner_size", "state_size", "group_count"))
        return max(0, conv - 1) * (inner + 2 * groups * state) + state * inner
