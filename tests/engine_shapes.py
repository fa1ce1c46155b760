"""Small models of real architectures with random weights, that the engine runs: one of each way of using memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH, INNER, HEAD, HEADS, KV_HEADS = 256, 704, 64, 4, 2
CONTEXT, TOKENS, WINDOW = 8192, 3000, 512

# A tensor's name without ".weight", and its shape as numpy has it (the slowest dimension first).
Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Sample:
    """An architecture: what its header says beside the usual, and the tensors of layer number `n`."""

    architecture: str
    layer: Callable[[int], Tensors]
    layers: int = 4
    keys: dict[str, Any] = field(default_factory=dict)
    kv_heads: int | Sequence[int] = KV_HEADS
    tied: bool = True
    norm: str = "output_norm"
    quantized: bool = False


def _attention(n: int, *, normed: bool = False, bias: bool = False) -> Tensors:
    yield f"blk.{n}.attn_q", (HEADS * HEAD, WIDTH)
    yield f"blk.{n}.attn_k", (KV_HEADS * HEAD, WIDTH)
    yield f"blk.{n}.attn_v", (KV_HEADS * HEAD, WIDTH)
    yield f"blk.{n}.attn_output", (WIDTH, HEADS * HEAD)
    if normed:
        yield f"blk.{n}.attn_q_norm", (HEAD,)
        yield f"blk.{n}.attn_k_norm", (HEAD,)
    if bias:
        yield f"blk.{n}.attn_output.bias", (WIDTH,)


def _dense(n: int) -> Tensors:
    yield f"blk.{n}.ffn_gate", (INNER, WIDTH)
    yield f"blk.{n}.ffn_up", (INNER, WIDTH)
    yield f"blk.{n}.ffn_down", (WIDTH, INNER)


def _experts(n: int, count: int, inner: int, *, bias: bool = False) -> Tensors:
    yield f"blk.{n}.ffn_gate_inp", (count, WIDTH)
    yield f"blk.{n}.ffn_gate_exps", (count, inner, WIDTH)
    yield f"blk.{n}.ffn_up_exps", (count, inner, WIDTH)
    yield f"blk.{n}.ffn_down_exps", (count, WIDTH, inner)
    if bias:
        yield f"blk.{n}.ffn_gate_inp.bias", (count,)
        yield f"blk.{n}.ffn_gate_exps.bias", (count, inner)
        yield f"blk.{n}.ffn_up_exps.bias", (count, inner)
        yield f"blk.{n}.ffn_down_exps.bias", (count, WIDTH)


def _norms(n: int, *names: str) -> Tensors:
    for name in names:
        yield f"blk.{n}.{name}", (WIDTH,)


def _llama(n: int) -> Tensors:
    yield from _norms(n, "attn_norm", "ffn_norm")
    yield from _attention(n)
    yield from _dense(n)


def _qwen3(n: int) -> Tensors:
    yield from _norms(n, "attn_norm", "ffn_norm")
    yield from _attention(n, normed=True)
    yield from _dense(n)


def _gemma3(n: int) -> Tensors:
    yield from _qwen3(n)
    yield from _norms(n, "post_attention_norm", "post_ffw_norm")


def _qwen3moe(n: int) -> Tensors:
    yield from _norms(n, "attn_norm", "ffn_norm")
    yield from _attention(n, normed=True)
    yield from _experts(n, 16, 192)


def _gpt_oss(n: int) -> Tensors:
    yield from _norms(n, "attn_norm", "post_attention_norm")
    yield from _attention(n, bias=True)
    yield f"blk.{n}.attn_sinks", (HEADS,)
    yield from _experts(n, 8, 256, bias=True)


def _phi3(n: int) -> Tensors:
    yield from _norms(n, "attn_norm", "ffn_norm")
    yield f"blk.{n}.attn_qkv", ((HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
    yield f"blk.{n}.attn_output", (WIDTH, WIDTH)
    yield f"blk.{n}.ffn_up", (2 * INNER, WIDTH)
    yield f"blk.{n}.ffn_down", (WIDTH, INNER)


LORA, ROPE, NOPE = 128, 32, 64


def _deepseek2(n: int) -> Tensors:
    yield from _norms(n, "attn_norm", "ffn_norm")
    yield f"blk.{n}.attn_kv_a_norm", (LORA,)
    yield f"blk.{n}.attn_q_a_norm", (LORA,)
    yield f"blk.{n}.attn_q_a", (LORA, WIDTH)
    yield f"blk.{n}.attn_q_b", (HEADS * (NOPE + ROPE), LORA)
    yield f"blk.{n}.attn_kv_a_mqa", (LORA + ROPE, WIDTH)
    yield f"blk.{n}.attn_k_b", (HEADS, LORA, NOPE)
    yield f"blk.{n}.attn_v_b", (HEADS, HEAD, LORA)
    yield f"blk.{n}.attn_output", (WIDTH, HEADS * HEAD)
    if n == 0:
        yield from _dense(n)
        return
    yield from _experts(n, 8, 192)
    yield f"blk.{n}.ffn_gate_shexp", (192, WIDTH)
    yield f"blk.{n}.ffn_up_shexp", (192, WIDTH)
    yield f"blk.{n}.ffn_down_shexp", (WIDTH, 192)


STATE, RANK, CONV = 16, 16, 4


def _mamba(n: int) -> Tensors:
    yield from _norms(n, "attn_norm")
    yield f"blk.{n}.ssm_in", (4 * WIDTH, WIDTH)
    yield f"blk.{n}.ssm_conv1d", (2 * WIDTH, CONV)
    yield f"blk.{n}.ssm_conv1d.bias", (2 * WIDTH,)
    yield f"blk.{n}.ssm_x", (RANK + 2 * STATE, 2 * WIDTH)
    yield f"blk.{n}.ssm_dt", (2 * WIDTH, RANK)
    yield f"blk.{n}.ssm_dt.bias", (2 * WIDTH,)
    yield f"blk.{n}.ssm_a.", (2 * WIDTH, STATE)
    yield f"blk.{n}.ssm_d.", (2 * WIDTH,)
    yield f"blk.{n}.ssm_out", (WIDTH, 2 * WIDTH)


MIXED = (0, 0, KV_HEADS, 0, 0, KV_HEADS)


def _lfm2(n: int) -> Tensors:
    yield from _norms(n, "attn_norm", "ffn_norm")
    yield from _dense(n)
    if MIXED[n]:
        yield from _attention(n, normed=True)
        return
    yield f"blk.{n}.shortconv.conv", (WIDTH, 3)
    yield f"blk.{n}.shortconv.in_proj", (3 * WIDTH, WIDTH)
    yield f"blk.{n}.shortconv.out_proj", (WIDTH, WIDTH)


def _jamba(n: int) -> Tensors:
    yield from _norms(n, "ffn_norm")
    yield from _dense(n)
    if MIXED[n]:
        yield from _norms(n, "attn_norm")
        yield from _attention(n)
        return
    yield from _mamba(n)
    yield f"blk.{n}.ssm_dt_norm", (RANK,)
    yield f"blk.{n}.ssm_b_norm", (STATE,)
    yield f"blk.{n}.ssm_c_norm", (STATE,)


HEAD_LENGTHS = {"attention.key_length": HEAD, "attention.value_length": HEAD}
STATES = {
    "ssm.conv_kernel": CONV, "ssm.inner_size": 2 * WIDTH, "ssm.state_size": STATE, "ssm.time_step_rank": RANK,
}  # fmt: skip

SAMPLES = {
    "llama": Sample("llama", _llama, tied=False),
    "llama Q4_0": Sample("llama", _llama, quantized=True),
    "qwen3": Sample("qwen3", _qwen3, keys=HEAD_LENGTHS),
    "gemma3": Sample("gemma3", _gemma3, 6, {**HEAD_LENGTHS, "attention.sliding_window": WINDOW}),
    "qwen3moe": Sample(
        "qwen3moe", _qwen3moe,
        keys={**HEAD_LENGTHS, "expert_count": 16, "expert_used_count": 4, "expert_feed_forward_length": 192},
    ),
    "gpt-oss": Sample(
        "gpt-oss", _gpt_oss, tied=False,
        keys={
            **HEAD_LENGTHS, "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 256,
            "attention.sliding_window": WINDOW,
        },
    ),
    "phi3": Sample("phi3", _phi3, keys={"attention.sliding_window": WINDOW}),
    "deepseek2": Sample(
        "deepseek2", _deepseek2, kv_heads=1,
        keys={
            "attention.key_length": LORA + ROPE, "attention.key_length_mla": NOPE + ROPE,
            "attention.value_length": LORA, "attention.value_length_mla": HEAD, "attention.q_lora_rank": LORA,
            "attention.kv_lora_rank": LORA, "rope.dimension_count": ROPE, "leading_dense_block_count": 1,
            "expert_count": 8, "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": 192,
        },
    ),
    "mamba": Sample("mamba", _mamba, keys=STATES, kv_heads=0),
    "lfm2": Sample("lfm2", _lfm2, 6, {"shortconv.l_cache": 3}, kv_heads=MIXED, norm="token_embd_norm"),
    "jamba": Sample("jamba", _jamba, 6, STATES, kv_heads=MIXED),
}  # fmt: skip
"""By the name people know them by."""


def write(path: Path, name: str) -> Path:
    """The sample called `name`, in the file `path`."""
    sample = SAMPLES[name]
    writer = gguf.GGUFWriter(path, sample.architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(sample.layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(0 if sample.kv_heads == 0 else HEADS)
    writer.add_head_count_kv(sample.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in sample.keys.items():
        writer.add_uint32(f"{sample.architecture}.{key}", value)
    add_vocabulary(writer)
    random = numpy.random.default_rng(20)
    for tensor, shape in _tensors(sample):
        _add(writer, random, tensor, shape, quantized=sample.quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, count: int = TOKENS) -> None:
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


def _tensors(sample: Sample) -> Tensors:
    yield "token_embd", (TOKENS, WIDTH)
    yield sample.norm, (WIDTH,)
    if not sample.tied:
        yield "output", (TOKENS, WIDTH)
    for n in range(sample.layers):
        yield from sample.layer(n)


def _add(writer: gguf.GGUFWriter, random: Any, name: str, shape: tuple[int, ...], *, quantized: bool) -> None:
    full = name.removesuffix(".") if name.endswith((".bias", ".")) else f"{name}.weight"
    if len(shape) == 1 or "ssm_a" in name or "conv" in name or "_inp" in name or name.endswith(".bias"):
        writer.add_tensor(full, numpy.ones(shape, dtype=numpy.float32))
        return
    values = random.normal(0, 0.05, shape).astype(numpy.float32)
    if quantized and shape[-1] % 32 == 0:
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(full, gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(full, values.astype(numpy.float16))
