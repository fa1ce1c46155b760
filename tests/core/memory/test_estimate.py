"""The forecast's arithmetic: what it says of a layer, and how it grows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import MICRO_BATCH, cache_bytes, checkpoint_bytes, forecast, padded
from meshllm.core.memory.model_shape import LayerShape, ModelShape, even

FULL, WINDOWED, STATEFUL = (
    LayerShape(100, keys=64, values=32),
    LayerShape(100, keys=64, values=32, window=300),
    LayerShape(100, state=7),
)


def test_cache_bytes_of_each_kind_of_layer() -> None:
    assert cache_bytes(FULL, 4096, 3) == 3 * 4096 * 2 * 96
    assert cache_bytes(WINDOWED, 4096, 3) == 3 * 1024 * 2 * 96  # 300 and a batch of 512, rounded up
    assert cache_bytes(WINDOWED, 512, 1) == 512 * 2 * 96
    assert cache_bytes(STATEFUL, 4096, 3) == cache_bytes(STATEFUL, 1 << 20, 3) == 3 * 4 * 7


def test_checkpoint_bytes_of_layers_with_state() -> None:
    assert checkpoint_bytes(ModelShape((FULL,) * 4)) == 0
    assert checkpoint_bytes(ModelShape((FULL, WINDOWED, STATEFUL))) == 300 * 2 * 96 + 4 * 7


def test_idle_layer_has_no_weights() -> None:
    shape = ModelShape((FULL, LayerShape(500, idle=True)), input=10, output=20)
    said = forecast(shape, ContextSize(1024, 1))
    assert said.weights == (100, 0)
    assert shape.weights == 130


def test_encoder_has_no_attention_mask() -> None:
    layers = (LayerShape(100),) * 2
    encoder = forecast(ModelShape(layers, width=64, vocabulary=1000, cached=False), ContextSize(8192, 4), embeds=True)
    assert sum(encoder.cache) == 0
    assert encoder.scores == 4 * 1000 * MICRO_BATCH


def test_even_spreads_the_size_over_the_layers() -> None:
    # Qwen3 8B as a catalogue has it: 36 layers, 8 heads of 128 for keys and values, 5.0 GB.
    shape = even(size=5_027_783_872, layers=36, kv_heads=8, head_length=128, width=4096, inner=12288, vocabulary=151936)
    said = forecast(shape, ContextSize(32768, 1))
    assert shape.weights == 5_027_783_872
    assert sum(said.cache) == 36 * 32768 * 2 * 2048
    assert 10.0e9 < said.total < 10.3e9
    half = even(size=100, layers=4, kv_heads=1, head_length=8, window=512, window_every=2)
    assert [layer.window for layer in half.layers] == [512, 0, 512, 0]
    assert even(size=7, layers=0, kv_heads=1, head_length=8).weights == 7


@given(
    st.lists(st.builds(LayerShape, *[st.integers(0, 1 << 30)] * 2, *[st.integers(0, 4096)] * 4), max_size=8),
    st.integers(256, 1 << 20),
    st.integers(1, 8),
)
def test_more_context_or_slots_never_need_less(layers: list[LayerShape], context: int, slots: int) -> None:
    shape = ModelShape(tuple(layers), input=1, output=2, width=64, inner=256, vocabulary=1000)
    said = forecast(shape, ContextSize(context, slots))
    assert said.total <= forecast(shape, ContextSize(context + 1, slots)).total
    assert said.total <= forecast(shape, ContextSize(context, slots + 1)).total
    assert len(said.weights) == len(said.cache) == len(layers)
    assert padded(context) >= context
