"""Small GGUF files for tests of what the engine does with them."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy

WORDS = (
    "the", "of", "to", "in", "is", "and", "cat", "dog", "sat", "on", "mat", "red", "green", "star", "rain", "snow",
    "paris", "rome", "capital", "france", "italy", "hello", ".",
)  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WIDTH, HIDDEN, LAYERS, HEADS = 48, 96, 2, 4
CONTEXT = 64


def model_without_needed_tensors(path: Path) -> Path:
    """A llama of one layer whose header is sound and whose only tensor is the embedding."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "<s>", "</s>"])
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 32), dtype=numpy.float32))
    return _written(writer, path)


def embedder(path: Path, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN) -> Path:
    """A BERT of two layers and 48 dimensions with random weights (always the same) that takes 64 tokens."""
    return _written(_bert(path, pooling, classifier=False), path)


def reranker(path: Path, pooling: gguf.PoolingType | None = gguf.PoolingType.RANK) -> Path:
    """The same BERT with a head that gives a pair of texts one score."""
    return _written(_bert(path, pooling, classifier=True), path)


def causal_embedder(path: Path) -> Path:
    """A llama of one layer that is read at its last token, as Qwen3-Embedding and e5-mistral are; it takes 2048 tokens.

    Its vocabulary is single letters. The engine would let it write text too.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_pooling_type(gguf.PoolingType.LAST)
    tokens = [
        "<s>",
        "</s>",
        "\u0120",
        "\u010a",
        ".",
        *LETTERS,
    ]  # a space and a line feed, as byte-level BPE writes them
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(["\u0120 \u0120"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    random = numpy.random.default_rng(20)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        **{f"blk.0.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (HIDDEN, WIDTH),
        "blk.0.ffn_up": (HIDDEN, WIDTH),
        "blk.0.ffn_down": (WIDTH, HIDDEN),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.5, shape).astype(numpy.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    return _written(writer, path)


def picture(side: int) -> dict[str, Any]:
    """A grey PNG, as a part of a chat's message."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\x80" * 3 * side) * side)
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png).decode()}}


def projector(
    path: Path,
    *,
    width: int = 64,
    hidden: int = 128,
    layers: int = 2,
    side: int = 64,
    patch: int = 16,
    text_width: int = 576,
    most_pixels: int = 0,
) -> Path:
    """A vision projector in the manner of Gemma 3's, with random weights (always the same), for a model whose tokens
    have `text_width` numbers. A picture of `side` pixels becomes a token for every four patches."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "gemma3")
    numbers = {
        "image_size": side, "patch_size": patch, "embedding_length": width, "feed_forward_length": hidden,
        "block_count": layers, "projection_dim": text_width, "attention.head_count": 4, "projector.scale_factor": 2,
    }  # fmt: skip
    if most_pixels:
        numbers["image_max_pixels"] = most_pixels
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (width, 3, patch, patch),
        "v.patch_embd.bias": (width,),
        "v.position_embd.weight": ((side // patch) ** 2, width),
        "v.post_ln.weight": (width,),
        "v.post_ln.bias": (width,),
        "mm.input_projection.weight": (width, text_width),
        "mm.soft_emb_norm.weight": (width,),
    }
    for layer in range(layers):
        parts = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width))
        parts |= {"ffn_up": (hidden, width), "ffn_down": (width, hidden)}
        for part, shape in parts.items():
            shapes |= {f"v.blk.{layer}.{part}.weight": shape, f"v.blk.{layer}.{part}.bias": shape[:1]}
        for part in ("ln1", "ln2"):
            shapes |= {f"v.blk.{layer}.{part}.{kind}": (width,) for kind in ("weight", "bias")}
    random = numpy.random.default_rng(20)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(numpy.float32))
    return _written(writer, path)


def _bert(path: Path, pooling: gguf.PoolingType | None, *, classifier: bool) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_token_type_count(1)
    # As converters write WordPiece: a word's first piece begins with a mark, the others lose their "##".
    pieces = ["\u2581" + word for word in (*WORDS, *LETTERS)] + list(LETTERS)
    tokens = [*SPECIAL, *pieces]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types([control] * len(SPECIAL) + [normal] * len(pieces))
    writer.add_pad_token_id(SPECIAL.index("[PAD]"))
    writer.add_unk_token_id(SPECIAL.index("[UNK]"))
    writer.add_bos_token_id(SPECIAL.index("[CLS]"))
    writer.add_sep_token_id(SPECIAL.index("[SEP]"))
    writer.add_mask_token_id(SPECIAL.index("[MASK]"))
    random = numpy.random.default_rng(20)

    def weight(name: str, *shape: int) -> None:
        # Large enough that texts differ visibly in what comes out.
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.5, shape).astype(numpy.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, dtype=numpy.float32))
        writer.add_tensor(f"{name}.bias", numpy.zeros(WIDTH, dtype=numpy.float32))

    weight("token_embd", len(tokens), WIDTH)
    weight("token_types", 1, WIDTH)
    weight("position_embd", CONTEXT, WIDTH)
    norm("token_embd_norm")
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weight(f"blk.{layer}.{part}", WIDTH, WIDTH)
        weight(f"blk.{layer}.ffn_up", HIDDEN, WIDTH)
        weight(f"blk.{layer}.ffn_down", WIDTH, HIDDEN)
        norm(f"blk.{layer}.attn_output_norm")
        norm(f"blk.{layer}.layer_output_norm")
    if classifier:
        weight("cls", WIDTH, WIDTH)
        weight("cls.output", 1, WIDTH)
    return writer


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_chat_template(model: Path, template: str, path: Path) -> Path:
    """A copy of a GGUF file with another chat template, padded so that the tensors stay aligned."""
    data, key = model.read_bytes(), b"tokenizer.chat_template"
    place = data.index(key) + len(key) + 4
    (size,) = struct.unpack_from("<Q", data, place)
    text = template.encode()
    gap = 4 + (size - len(text) - 4) % 32
    text += b"{#" + b" " * (gap - 4) + b"#}"
    path.write_bytes(data[:place] + struct.pack("<Q", len(text)) + text + data[place + 8 + size :])
    return path
