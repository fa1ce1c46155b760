"""Small GGUF files of known content, written by the `gguf` package."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_sample(
    path: Path,
    *,
    architecture: str = "llama",
    layers: int = 2,
    first: int = 0,
    experts: int = 0,
    kv_heads: int | list[int] = 1,
    tokens: int = 20,
    template: str | None = "{{ messages }}",
    alignment: int | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """A tiny model: `layers` blocks, from number `first` on, of a few F32, F16 and Q8_0 tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_type("model")
    writer.add_name("Sample")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(layers)
    writer.add_head_count(4)
    writer.add_head_count_kv(kv_heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(tokens)])
    writer.add_token_merges([f"t{number} t{number + 1}" for number in range(tokens - 1)])
    writer.add_token_types([1] * tokens)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (extra or {}).items():
        {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool, float: writer.add_float32}[type(value)](
            key, value
        )
    zeros = np.zeros((4, 64), dtype=np.float32)
    for layer in range(first, first + layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.zeros(64, dtype=np.float32))
        writer.add_tensor(f"blk.{layer}.attn_q.weight", np.zeros((64, 64), dtype=np.float16))
        packed = gguf.quantize(zeros, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        if experts:
            writer.add_tensor(f"blk.{layer}.ffn_up_exps.weight", np.zeros((experts, 4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_parts(folder: Path, stem: str, count: int = 2, **extra: Any) -> list[Path]:
    """A tiny model in `count` parts, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_sample(
            folder / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf",
            first=2 * number,
            extra={"split.no": number, "split.count": count, **extra},
        )
        for number in range(count)
    ]


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes | str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


def header(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    pair_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A hand-made header; its counts can be false."""
    pairs = [pair("general.architecture", 8, text("llama"))] if pairs is None else pairs
    tensors = tensors or []
    return b"".join(
        [
            magic,
            struct.pack("<I", version),
            struct.pack("<Q", len(tensors) if tensor_count is None else tensor_count),
            struct.pack("<Q", len(pairs) if pair_count is None else pair_count),
            *pairs,
            *tensors,
        ]
    )
