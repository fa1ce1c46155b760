"""Memory shape of each architecture from its header, against the tensor sizes of `gguf`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from meshllm.core.memory.model_shape import LayerShape
from meshllm.errors import InvalidModelFile
from meshllm.models.gguf.header import Header, read_header, read_whole
from tests import engine_shapes


def said_by_gguf(path: Path) -> tuple[dict[int, int], dict[int, int], int]:
    """Bytes per layer, of experts, and outside of layers."""
    layers: dict[int, int] = {}
    experts: dict[int, int] = {}
    rest = 0
    for item in gguf.GGUFReader(path).tensors:
        if match := re.match(r"blk\.(\d+)\.", item.name):
            number, size = int(match[1]), int(item.n_bytes)
            layers[number] = layers.get(number, 0) + size
            experts[number] = experts.get(number, 0) + (size if "_exps" in item.name else 0)
        else:
            rest += int(item.n_bytes)
    return layers, experts, rest


@pytest.mark.parametrize("name", engine_shapes.SAMPLES)
def test_layer_bytes_match_the_gguf_package(tmp_path: Path, name: str) -> None:
    path = engine_shapes.write(tmp_path / "m.gguf", name)
    header, (layers, experts, rest) = read_header(path), said_by_gguf(path)
    assert [layer.weights for layer in header.shape.layers] == [layers[n] for n in sorted(layers)]
    assert [layer.experts for layer in header.shape.layers] == [experts[n] for n in sorted(layers)]
    assert header.shape.input + header.shape.output == rest
    assert header.shape.weights == header.tensor_bytes
    assert header.shape.tied is engine_shapes.SAMPLES[name].tied


def write(path: Path, architecture: str, keys: dict[str, Any], *, layers: int = 4) -> Header:
    """A header with 4 heads of 8 (unless `keys` differ) and one tensor per layer."""
    writer = gguf.GGUFWriter(path, architecture)
    usual = {"block_count": layers, "embedding_length": 32, "attention.head_count": 4, "attention.head_count_kv": 2}
    for key, value in {**usual, **keys}.items():
        full = f"{architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(full, value)
        else:
            writer.add_uint32(full, value)
    for n in range(layers):
        writer.add_tensor(f"blk.{n}.attn_norm.weight", numpy.zeros(32, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_header(path)


W = {"attention.sliding_window": 100}
MAMBA = {"ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.group_count": 2}
WINDOWS = {
    "gemma2, whose file says nothing": ("gemma2", {}, [4096, 0, 4096, 0]),
    "gemma2": ("gemma2", W, [100, 0, 100, 0]),
    "gemma3 with a pattern of its own": ("gemma3", {**W, "attention.sliding_window_pattern": 2}, [100, 0, 100, 0]),
    "gemma3 without": ("gemma3", {}, [0, 0, 0, 0]),
    "gemma4, which lists them": ("gemma4", {**W, "attention.sliding_window_pattern": [1, 1, 0, 1]}, [100, 100, 0, 100]),
    "gpt-oss": ("gpt-oss", W, [100, 0, 100, 0]),
    "llama4": ("llama4", {}, [8192, 8192, 8192, 0]),
    "llama4 switched off": ("llama4", {"attention.sliding_window": 0}, [0, 0, 0, 0]),
    "smallthinker": ("smallthinker", W, [0, 4096, 4096, 4096]),
    "exaone4 of few layers": ("exaone4", W, [0, 0, 0, 0]),
    "phi3, whose window is not used": ("phi3", W, [0, 0, 0, 0]),
    "llama": ("llama", W, [0, 0, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("case", WINDOWS)
def test_sliding_window_layers(tmp_path: Path, case: str) -> None:
    architecture, keys, expected = WINDOWS[case]
    header = write(tmp_path / "m.gguf", architecture, keys)
    assert [layer.window for layer in header.shape.layers] == expected
    assert all((layer.keys, layer.values) == (16, 16) for layer in header.shape.layers)


KEPT, STATE = LayerShape(128, keys=16, values=16), 3 * (64 + 2 * 2 * 16) + 16 * 64
CONV = 32 * 2
STATES = {
    "qwen3next": (MAMBA, ["s", "s", "s", "k"], STATE),
    "qwen3next whose file says": ({**MAMBA, "attention.recurrent_layers": [1, 0, 0, 1]}, ["s", "k", "k", "s"], STATE),
    "minimax-01": ({"full_attention_interval": 2}, ["s", "k", "s", "k"], 8 * 8 * 4),
    "lfm2": ({"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0, 2]}, ["s", "k", "s", "k"], CONV),
    "jamba": ({**MAMBA, "attention.head_count_kv": [0, 0, 2, 0]}, ["s", "s", "k", "s"], STATE),
    "nemotron_h": (
        {**MAMBA, "attention.head_count_kv": [0, 2, 0, 0], "feed_forward_length": [0, 0, 64, 0]}, "sk-s", STATE,
    ),
    "falcon-h1": (MAMBA, ["b", "b", "b", "b"], STATE),
    "mamba2": ({**MAMBA, "attention.head_count": 0, "attention.head_count_kv": 0}, ["s", "s", "s", "s"], STATE),
    "rwkv7": (
        {"wkv.head_size": 8, "attention.head_count": 0, "attention.head_count_kv": 0}, ["s"] * 4, 2 * 32 + 32 * 8,
    ),
    "kimi-linear": (
        {"kda.head_dim": 8, "ssm.conv_kernel": 4, "attention.head_count_kv": [0, 2, 0, 2]}, ["s", "k"] * 2,
        3 * 3 * 4 * 8 + 8 * 8 * 4,
    ),
    "bert": ({}, "----", 0),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_recurrent_layers(tmp_path: Path, case: str) -> None:
    keys, expected, state = STATES[case]
    header = write(tmp_path / "m.gguf", case.partition(" ")[0], keys)
    kinds = {
        "s": (0, 0, state),
        "k": (16, 16, 0),
        "b": (16, 16, state),
        "-": (0, 0, 0),
    }
    assert [(layer.keys, layer.values, layer.state) for layer in header.shape.layers] == [kinds[k] for k in expected]
    assert header.shape.cached is (case != "bert")


def test_shared_predicting_and_compressed_layers(tmp_path: Path) -> None:
    shared = write(tmp_path / "a.gguf", "gemma4", {"attention.shared_kv_layers": 3})
    assert [layer.keys for layer in shared.shape.layers] == [16, 0, 0, 0]
    ahead = write(tmp_path / "b.gguf", "qwen3", {"nextn_predict_layers": 1})
    assert [layer.keys for layer in ahead.shape.layers] == [16, 16, 16, 0]
    assert [layer.idle for layer in ahead.shape.layers] == [False, False, False, True]
    assert ahead.shape.weights == ahead.tensor_bytes - 128
    compressed = {"attention.key_length_mla": 12, "attention.value_length_mla": 8, "attention.key_length": 24}
    latent = write(tmp_path / "c.gguf", "deepseek2", {**compressed, "attention.head_count_kv": 1})
    assert {(layer.keys, layer.values) for layer in latent.shape.layers} == {(24, 0)}
    assert (latent.shape.query, latent.shape.latent) == (48, 96)
    other = {"attention.key_length_swa": 4, "attention.value_length_swa": 2}
    mixed = write(tmp_path / "d.gguf", "gemma3", {**W, **other, "attention.sliding_window_pattern": 2})
    assert [(layer.keys, layer.values) for layer in mixed.shape.layers] == [(8, 4), (16, 16)] * 2


def test_experts_of_old_files_have_a_tensor_each(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    for name in ("ffn_gate.0", "ffn_up.1", "ffn_down.7", "ffn_gate_inp", "ffn_gate_shexp", "ffn_up_chexps", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", numpy.zeros(32, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(tmp_path / "m.gguf").shape.layers == (LayerShape(7 * 128, experts=4 * 128),)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"block_count": 513}, "513 layers"),
        ({"expert_count": 1025}, "of 1025 experts"),
        ({"expert_count": 4, "expert_used_count": 5}, "5 of 4 experts"),
        ({"attention.head_count_kv": [1, -1, 1, 1]}, "is out of range"),
    ],
)
def test_numbers_that_abort_the_engine_are_rejected(tmp_path: Path, keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidModelFile, match=reason):
        write(tmp_path / "m.gguf", "llama", keys)


# -- several parts


def parts(folder: Path, *, metadata_first: bool) -> list[Path]:
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=3, small_first_shard=metadata_first)
    writer.add_block_count(4)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_context_length(512)
    for n in range(4):
        writer.add_tensor(f"blk.{n}.attn_norm.weight", numpy.zeros(32, dtype=numpy.float32))
        writer.add_tensor(f"blk.{n}.ffn_norm.weight", numpy.zeros(64, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


@pytest.mark.parametrize("metadata_first", [False, True])
def test_parts_are_summed_up(tmp_path: Path, metadata_first: bool) -> None:
    files = parts(tmp_path, metadata_first=metadata_first)
    first, whole = read_header(files[0]), read_whole(files)
    assert (first.parts, first.tensor_count) == (len(files), 0 if metadata_first else 3)
    assert (whole.tensor_count, whole.tensor_bytes, whole.quantization) == (8, 4 * (128 + 256), "F32")
    assert {layer.weights for layer in whole.shape.layers} == {128 + 256}
    assert (whole.architecture, whole.context_length, whole.part, whole.parts) == ("llama", 512, 0, len(files))
    assert read_header(files[1]).part == 1


def test_parts_of_different_models_are_rejected(tmp_path: Path) -> None:
    files = parts(tmp_path, metadata_first=False)
    with pytest.raises(InvalidModelFile, match="part 1 of 3 instead of part 1 of 2"):
        read_whole(files[:2])
    with pytest.raises(InvalidModelFile, match="part 3 of 3 instead of part 2 of 3"):
        read_whole([files[0], files[2], files[1]])
    with pytest.raises(InvalidModelFile, match="instead of part 2 of 3"):
        read_whole([files[0], files[0], files[2]])
    (tmp_path / "other").mkdir()
    more = parts(tmp_path / "other", metadata_first=True)
    assert len(more) == 4
    data = files[2].read_bytes().replace(b"blk.3.ffn_norm", b"blk.0.ffn_norm")
    files[2].write_bytes(data)
    with pytest.raises(InvalidModelFile, match="occurs twice"):
        read_whole(files)
