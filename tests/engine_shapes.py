"""Models of real architectures, that the engine takes: small ones with random weights, and real ones' outlines.

One of each way of using memory. An outline has the header of a model of real size and no weights behind it (the file is
sparse): enough to ask what it would take.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT, WINDOW = 8192, 512

# A tensor's name without ".weight", and its shape as numpy has it (the slowest dimension first).
Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Dims:
    """How large a model is. `low` and `low_query`: what latent attention compresses to."""

    width: int = 256
    inner: int = 704
    head: int = 64
    heads: int = 4
    kv_heads: int = 2
    layers: int = 4
    experts: int = 8
    used: int = 2
    expert_inner: int = 192
    window: int = WINDOW
    low: int = 128
    low_query: int = 128
    rope: int = 32
    plain: int = 64
    attention: tuple[int, ...] = (2, 5)  # layers of a mixed model that attend
    tokens: int = 3000


@dataclass(frozen=True)
class Sample:
    """An architecture: the tensors of layer number `n`, and what its header says beside the usual."""

    architecture: str
    layer: Callable[[Dims, int], Tensors]
    keys: Callable[[Dims], dict[str, Any]] = lambda d: {}
    dims: Dims = field(default_factory=Dims)
    kv_heads: Callable[[Dims], int | Sequence[int]] = lambda d: d.kv_heads
    tied: bool = True
    norm: str = "output_norm"
    quantized: bool = False


def _attention(d: Dims, n: int, *, normed: bool = False, bias: bool = False) -> Tensors:
    yield f"blk.{n}.attn_q", (d.heads * d.head, d.width)
    yield f"blk.{n}.attn_k", (d.kv_heads * d.head, d.width)
    yield f"blk.{n}.attn_v", (d.kv_heads * d.head, d.width)
    yield f"blk.{n}.attn_output", (d.width, d.heads * d.head)
    if normed:
        yield f"blk.{n}.attn_q_norm", (d.head,)
        yield f"blk.{n}.attn_k_norm", (d.head,)
    if bias:
        yield f"blk.{n}.attn_output.bias", (d.width,)


def _dense(d: Dims, n: int) -> Tensors:
    yield f"blk.{n}.ffn_gate", (d.inner, d.width)
    yield f"blk.{n}.ffn_up", (d.inner, d.width)
    yield f"blk.{n}.ffn_down", (d.width, d.inner)


def _experts(d: Dims, n: int, *, bias: bool = False) -> Tensors:
    yield f"blk.{n}.ffn_gate_inp", (d.experts, d.width)
    yield f"blk.{n}.ffn_gate_exps", (d.experts, d.expert_inner, d.width)
    yield f"blk.{n}.ffn_up_exps", (d.experts, d.expert_inner, d.width)
    yield f"blk.{n}.ffn_down_exps", (d.experts, d.width, d.expert_inner)
    if bias:
        yield f"blk.{n}.ffn_gate_inp.bias", (d.experts,)
        yield f"blk.{n}.ffn_gate_exps.bias", (d.experts, d.expert_inner)
        yield f"blk.{n}.ffn_up_exps.bias", (d.experts, d.expert_inner)
        yield f"blk.{n}.ffn_down_exps.bias", (d.experts, d.width)


def _norms(d: Dims, n: int, *names: str) -> Tensors:
    for name in names:
        yield f"blk.{n}.{name}", (d.width,)


def _llama(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm", "ffn_norm")
    yield from _attention(d, n)
    yield from _dense(d, n)


def _qwen3(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm", "ffn_norm")
    yield from _attention(d, n, normed=True)
    yield from _dense(d, n)


def _gemma3(d: Dims, n: int) -> Tensors:
    yield from _qwen3(d, n)
    yield from _norms(d, n, "post_attention_norm", "post_ffw_norm")


def _qwen3moe(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm", "ffn_norm")
    yield from _attention(d, n, normed=True)
    yield from _experts(d, n)


def _gpt_oss(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm", "post_attention_norm")
    yield from _attention(d, n, bias=True)
    yield f"blk.{n}.attn_sinks", (d.heads,)
    yield from _experts(d, n, bias=True)


def _phi3(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm", "ffn_norm")
    yield f"blk.{n}.attn_qkv", ((d.heads + 2 * d.kv_heads) * d.head, d.width)
    yield f"blk.{n}.attn_output", (d.width, d.width)
    yield f"blk.{n}.ffn_up", (2 * d.inner, d.width)
    yield f"blk.{n}.ffn_down", (d.width, d.inner)


def _deepseek2(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm", "ffn_norm")
    yield f"blk.{n}.attn_kv_a_norm", (d.low,)
    yield f"blk.{n}.attn_q_a_norm", (d.low_query,)
    yield f"blk.{n}.attn_q_a", (d.low_query, d.width)
    yield f"blk.{n}.attn_q_b", (d.heads * (d.plain + d.rope), d.low_query)
    yield f"blk.{n}.attn_kv_a_mqa", (d.low + d.rope, d.width)
    yield f"blk.{n}.attn_k_b", (d.heads, d.low, d.plain)
    yield f"blk.{n}.attn_v_b", (d.heads, d.head, d.low)
    yield f"blk.{n}.attn_output", (d.width, d.heads * d.head)
    if n == 0:
        yield from _dense(d, n)
        return
    yield from _experts(d, n)
    yield f"blk.{n}.ffn_gate_shexp", (d.expert_inner, d.width)
    yield f"blk.{n}.ffn_up_shexp", (d.expert_inner, d.width)
    yield f"blk.{n}.ffn_down_shexp", (d.width, d.expert_inner)


STATE, RANK, CONV = 16, 16, 4


def _mamba(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm")
    yield f"blk.{n}.ssm_in", (4 * d.width, d.width)
    yield f"blk.{n}.ssm_conv1d", (2 * d.width, CONV)
    yield f"blk.{n}.ssm_conv1d.bias", (2 * d.width,)
    yield f"blk.{n}.ssm_x", (RANK + 2 * STATE, 2 * d.width)
    yield f"blk.{n}.ssm_dt", (2 * d.width, RANK)
    yield f"blk.{n}.ssm_dt.bias", (2 * d.width,)
    yield f"blk.{n}.ssm_a.", (2 * d.width, STATE)
    yield f"blk.{n}.ssm_d.", (2 * d.width,)
    yield f"blk.{n}.ssm_out", (d.width, 2 * d.width)


def _lfm2(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "attn_norm", "ffn_norm")
    yield from _dense(d, n)
    if n in d.attention:
        yield from _attention(d, n, normed=True)
        return
    yield f"blk.{n}.shortconv.conv", (d.width, 3)
    yield f"blk.{n}.shortconv.in_proj", (3 * d.width, d.width)
    yield f"blk.{n}.shortconv.out_proj", (d.width, d.width)


def _jamba(d: Dims, n: int) -> Tensors:
    yield from _norms(d, n, "ffn_norm")
    yield from _dense(d, n)
    if n in d.attention:
        yield from _norms(d, n, "attn_norm")
        yield from _attention(d, n)
        return
    yield from _mamba(d, n)
    yield f"blk.{n}.ssm_dt_norm", (RANK,)
    yield f"blk.{n}.ssm_b_norm", (STATE,)
    yield f"blk.{n}.ssm_c_norm", (STATE,)


def _heads(d: Dims) -> dict[str, Any]:
    return {"attention.key_length": d.head, "attention.value_length": d.head}


def _windowed(d: Dims) -> dict[str, Any]:
    return {**_heads(d), "attention.sliding_window": d.window}


def _mixture(d: Dims) -> dict[str, Any]:
    return {
        **_heads(d),
        "expert_count": d.experts,
        "expert_used_count": d.used,
        "expert_feed_forward_length": d.expert_inner,
    }


def _latent(d: Dims) -> dict[str, Any]:
    return {
        **_mixture(d),
        "attention.key_length": d.low + d.rope,
        "attention.key_length_mla": d.plain + d.rope,
        "attention.value_length": d.low,
        "attention.value_length_mla": d.head,
        "attention.q_lora_rank": d.low_query,
        "attention.kv_lora_rank": d.low,
        "rope.dimension_count": d.rope,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
    }


def _states(d: Dims) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": CONV,
        "ssm.inner_size": 2 * d.width,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": RANK,
    }


def _mixed(d: Dims) -> Sequence[int]:
    return [d.kv_heads if n in d.attention else 0 for n in range(d.layers)]


SIX = Dims(layers=6)
SAMPLES = {
    "llama": Sample("llama", _llama, tied=False),
    "llama Q4_0": Sample("llama", _llama, quantized=True),
    "qwen3": Sample("qwen3", _qwen3, _heads),
    "gemma3": Sample("gemma3", _gemma3, _windowed, SIX),
    "qwen3moe": Sample("qwen3moe", _qwen3moe, _mixture, Dims(experts=16, used=4)),
    "gpt-oss": Sample(
        "gpt-oss", _gpt_oss, lambda d: {**_mixture(d), **_windowed(d)}, Dims(expert_inner=256), tied=False
    ),
    "phi3": Sample("phi3", _phi3, lambda d: {"attention.sliding_window": d.window}),
    "deepseek2": Sample("deepseek2", _deepseek2, _latent, kv_heads=lambda d: 1),
    "mamba": Sample("mamba", _mamba, _states, kv_heads=lambda d: 0),
    "lfm2": Sample("lfm2", _lfm2, lambda d: {"shortconv.l_cache": 3}, SIX, _mixed, norm="token_embd_norm"),
    "jamba": Sample("jamba", _jamba, _states, SIX, _mixed),
}
"""By the name people know them by."""

OUTLINES = {
    "Llama 3.1 8B": ("llama", Dims(4096, 14336, 128, 32, 8, 32, tokens=128256)),
    "Qwen3 32B": ("qwen3", Dims(5120, 25600, 128, 64, 8, 64, tokens=151936)),
    "Gemma 3 27B": ("gemma3", Dims(5376, 21504, 128, 32, 16, 62, window=1024, tokens=262144)),
    "Qwen3 30B A3B": ("qwen3moe", Dims(2048, 6144, 128, 32, 4, 48, 128, 8, 768, tokens=151936)),
    "gpt-oss 120B": ("gpt-oss", Dims(2880, 2880, 64, 64, 8, 36, 128, 4, 2880, window=128, tokens=201088)),
    "Phi 3.5 mini": ("phi3", Dims(3072, 8192, 96, 32, 32, 32, tokens=32064)),
    "DeepSeek V3": (
        "deepseek2",
        Dims(7168, 18432, 128, 128, 1, 61, 256, 8, 2048, low=512, low_query=1536, rope=64, plain=128, tokens=129280),
    ),
    "Mamba 2.8B": ("mamba", Dims(2560, 0, layers=64, tokens=50280)),
    "LFM2 1.2B": ("lfm2", Dims(2048, 8192, 64, 32, 8, 16, attention=(2, 5, 8, 10, 12, 14), tokens=65536)),
}
"""Models of real size (in 16 bits), by the sample whose outline they have."""


def write(path: Path, name: str) -> Path:
    """The sample called `name`, in the file `path`."""
    sample = SAMPLES[name]
    writer = _header(path, sample, sample.dims)
    random = numpy.random.default_rng(20)
    for tensor, shape in _tensors(sample, sample.dims):
        _add(writer, random, tensor, shape, quantized=sample.quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def outline(path: Path, name: str) -> Path:
    """The outline of the model called `name`: all of it but the weights, in whose place the file has a hole."""
    kind, dims = OUTLINES[name]
    sample = SAMPLES[kind]
    writer = _header(path, sample, dims)
    size = 0
    for tensor, shape in _tensors(sample, dims):
        dtype = numpy.dtype(numpy.float32 if _plain(tensor, shape) else numpy.float16)
        count = int(numpy.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(_full(tensor), shape, dtype, count)
        size += -(-count // writer.data_alignment) * writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + size + writer.data_alignment)
    return path


def _header(path: Path, sample: Sample, d: Dims) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, sample.architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(d.width)
    writer.add_block_count(d.layers)
    writer.add_feed_forward_length(d.inner)
    kv_heads = sample.kv_heads(d)
    writer.add_head_count(0 if kv_heads == 0 else d.heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in sample.keys(d).items():
        writer.add_uint32(f"{sample.architecture}.{key}", value)
    add_vocabulary(writer, d.tokens)
    return writer


def add_vocabulary(writer: gguf.GGUFWriter, count: int = 3000) -> None:
    """Letters, a space, a line feed, and words that no text holds."""
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    tokens = ["<s>", "</s>", "\u0120", "\u010a", ".", *LETTERS]
    tokens += [f"<{number}>" for number in range(count - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([control, control] + [normal] * (count - 2))
    writer.add_token_merges(["\u0120 \u0120"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _tensors(sample: Sample, d: Dims) -> Tensors:
    yield "token_embd", (d.tokens, d.width)
    yield sample.norm, (d.width,)
    if not sample.tied:
        yield "output", (d.tokens, d.width)
    for n in range(d.layers):
        yield from sample.layer(d, n)


def _full(name: str) -> str:
    return name.removesuffix(".") if name.endswith((".bias", ".")) else f"{name}.weight"


def _plain(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is of single numbers, as norms, biases and what the engine wants exact are."""
    return len(shape) == 1 or "ssm_a" in name or "conv" in name or "_inp" in name or name.endswith(".bias")


def _add(writer: gguf.GGUFWriter, random: Any, name: str, shape: tuple[int, ...], *, quantized: bool) -> None:
    if _plain(name, shape):
        writer.add_tensor(_full(name), numpy.ones(shape, dtype=numpy.float32))
        return
    values = random.normal(0, 0.05, shape).astype(numpy.float32)
    if quantized and shape[-1] % 32 == 0:
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(_full(name), gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(_full(name), values.astype(numpy.float16))
