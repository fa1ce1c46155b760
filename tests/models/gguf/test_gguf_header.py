"""The header reader: equal to the `gguf` package, and InvalidModelFile for damaged files."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_samples import header, pair, tensor, text, write_sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshllm import paths
from meshllm.errors import InvalidModelFile
from meshllm.models.catalog.catalog import load
from meshllm.models.gguf import cursor as cursor
from meshllm.models.gguf.ggml_types import BLOCKS, FILE_TYPES
from meshllm.models.gguf.header import Header, read_header, read_header_from
from meshllm.models.library.store import Store


def read(data: bytes) -> Header:
    return read_header_from(io.BytesIO(data), len(data), "sample")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_sample(tmp_path_factory.mktemp("gguf") / "s.gguf", layers=1, tokens=5).read_bytes()


# -- right answers


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"architecture": "qwen3moe", "experts": 8, "layers": 3},
        {"kv_heads": [1, 2], "template": None},
        {"alignment": 256, "tokens": 3000, "extra": {"general.quantized_by": "someone", "x.y": 1.5}},
    ],
)
def test_read_header_matches_the_gguf_package(tmp_path: Path, shape: dict[str, Any]) -> None:
    path = write_sample(tmp_path / "sample.gguf", **shape)
    theirs = gguf.GGUFReader(path)
    ours = read_header(path)
    arch = shape.get("architecture", "llama")

    def field(key: str) -> Any:
        return theirs.fields[key].contents() if key in theirs.fields else None

    assert ours.architecture == field("general.architecture") == arch
    assert ours.name == field("general.name")
    assert ours.context_length == field(f"{arch}.context_length")
    assert ours.layers == field(f"{arch}.block_count")
    assert ours.heads == field(f"{arch}.attention.head_count")
    kv_heads = field(f"{arch}.attention.head_count_kv")
    assert ours.kv_heads == (max(kv_heads) if isinstance(kv_heads, list) else kv_heads)
    assert ours.embedding_length == field(f"{arch}.embedding_length")
    assert ours.experts == (field(f"{arch}.expert_count") or 0)
    assert ours.experts_used == (field(f"{arch}.expert_used_count") or 0)
    assert ours.vocabulary_size == len(theirs.fields["tokenizer.ggml.tokens"].data)
    assert ours.tokenizer == field("tokenizer.ggml.model")
    assert ours.chat_template == field("tokenizer.chat_template")
    assert ours.quantization == "Q8_0"
    assert ours.tensor_count == len(theirs.tensors)
    assert ours.tensor_bytes == sum(int(item.n_bytes) for item in theirs.tensors)
    assert ours.parameters == sum(int(item.n_elements) for item in theirs.tensors)
    assert (ours.kind, ours.part, ours.parts) == ("model", 0, 1)


MODELS = paths.models()  # before a test has a home of its own


def test_read_header_of_the_real_model() -> None:
    file = load().get("SmolLM2-135M-Instruct").files[0]
    store = Store(MODELS)
    if not store.has_size(file):
        pytest.skip(f"{file.name} is not in {store.folder}; `mesh-llm download SmolLM2-135M-Instruct` puts it there")
    found = read_header(store.path(file))
    assert (found.architecture, found.layers, found.heads, found.kv_heads) == ("llama", 30, 9, 3)
    assert (found.context_length, found.vocabulary_size, found.embedding_length) == (8192, 49152, 576)
    assert (found.parameters, found.tensor_bytes, found.quantization) == (134_515_008, 96_576_768, "Q4_1")
    assert found.chat_template is not None


def test_blocks_match_the_gguf_package() -> None:
    for kind, (per_block, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":
            continue  # the package says 40, ggml's own structure has 36 bytes; no file holds it
        assert BLOCKS[int(kind)] == (kind.name, per_block, size)


def test_file_types_match_the_gguf_package() -> None:
    for kind in gguf.LlamaFileType:
        name = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
        if int(kind) in FILE_TYPES:
            assert FILE_TYPES[int(kind)] == name
        else:
            assert name in ("GUESSED", "Q4_1_SOME_F16")


def test_quantization_falls_back_to_the_most_common_tensor_type() -> None:
    data = header(tensors=[tensor("a", (32, 100), 8, 0)])
    data += bytes(-len(data) % 32 + 3400)
    assert read(data).quantization == "Q8_0"


def test_read_header_skips_strings_across_the_window() -> None:
    count = 3 * cursor.WINDOW // 1000
    words = b"".join(text(b"x" * (number % 2000)) for number in range(count))
    listed = pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, count) + words)
    found = read(header([listed, pair("general.architecture", 8, text("llama"))]))
    assert found.vocabulary_size == count


# -- damage


def test_read_header_rejects_a_file_truncated_at_any_byte(sample: bytes) -> None:
    last = len(sample)
    while last and sample[:last].endswith(b"\0") and _reads(sample[: last - 1]):
        last -= 1  # padding behind the last tensor may be missing
    for length in range(last):
        with pytest.raises(InvalidModelFile):
            read(sample[:length])
    assert read(sample[:last]) == read(sample)


def _reads(data: bytes) -> bool:
    try:
        read(data)
    except InvalidModelFile:
        return False
    return True


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=12))
def test_read_header_survives_changed_bytes(sample: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(sample)
    for place, value in changes:
        data[place % min(len(data), 1400)] = value
    _reads(bytes(data))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_read_header_rejects_random_bytes(data: bytes) -> None:
    _reads(data)
    _reads(b"GGUF" + struct.pack("<IQQ", 3, len(data) % 7, len(data) % 5) + data)


ARCHITECTURE = pair("general.architecture", 8, text("llama"))
HUGE = 1 << 62

BAD = {
    "begins with GGML instead of GGUF": header(magic=b"GGML"),
    r"begins with \x00PK\xff instead of GGUF": header(magic=b"\0PK\xff"),
    "only 0 bytes": b"",
    "version 1": header(version=1),
    "version 4": header(version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + bytes(100),
    "tensors, ": header(tensor_count=HUGE),
    "metadata keys, ": header(pair_count=HUGE),
    "ends in the middle": header(pair_count=3),
    "a metadata key is": header([struct.pack("<Q", HUGE)]),
    "key is empty": header([pair("", 4, bytes(4))]),
    "occurs twice": header([ARCHITECTURE, ARCHITECTURE]),
    "unknown type 13": header([ARCHITECTURE, pair("a", 13, b"")]),
    "list of the unknown type 9": header([ARCHITECTURE, pair("a", 9, struct.pack("<IQ", 9, 1))]),
    "more than 4000000 strings": header([ARCHITECTURE, pair("a", 9, struct.pack("<IQ", 8, HUGE))]),
    "claims": header([ARCHITECTURE, pair("a", 9, struct.pack("<IQ", 4, HUGE))]),
    "a string in a list": header([ARCHITECTURE, pair("a", 9, struct.pack("<IQQ", 8, 1, HUGE))]),
    "more than 65536 numbers": header(
        [pair(f"{n}.attention.head_count", 9, struct.pack("<IQ", 0, 4000) + bytes(4000)) for n in range(17)]
    ),
    "value of 'a' is": header([ARCHITECTURE, pair("a", 8, struct.pack("<Q", HUGE))]),
    "value of 'tokenizer.chat_template'": header(
        [ARCHITECTURE, pair("tokenizer.chat_template", 8, struct.pack("<Q", (1 << 20) + 1))]
    ),
    "names no architecture": header([pair("general.architecture", 8, text(""))]),
    "names no architecture ": header([pair("general.architecture", 4, bytes(4))]),
    "alignment is 3": header([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 3))]),
    "alignment is 0": header([ARCHITECTURE, pair("general.alignment", 4, bytes(4))]),
    "is out of range": header([ARCHITECTURE, pair("llama.block_count", 11, struct.pack("<q", -5))]),
    "a tensor name is": header(tensors=[tensor("x" * 64, (1,), 0, 0)]),
    "tensor b'a' occurs twice": header(tensors=[tensor("a", (8,), 0, 0), tensor("a", (8,), 0, 32)]) + bytes(200),
    "5 dimensions": header(tensors=[tensor("a", (1, 1, 1, 1, 1), 0, 0)]),
    "unknown type 99": header(tensors=[tensor("a", (1,), 99, 0)]),
    "unknown type 31": header(tensors=[tensor("a", (1,), 31, 0)]),
    "is too large": header(tensors=[tensor("a", (1 << 40, 1 << 40), 0, 0)]),
    "not a multiple of 32": header(tensors=[tensor("a", (33,), 8, 0)]),
    "is at offset 7": header(tensors=[tensor("a", (1,), 0, 7)]),
    "truncated": header(tensors=[tensor("a", (1 << 30,), 0, 0)]),
}


@pytest.mark.parametrize("reason", BAD)
def test_read_header_error_names_the_reason(reason: str) -> None:
    with pytest.raises(InvalidModelFile) as refusal:
        read(BAD[reason])
    assert reason.strip() in refusal.value.message
    assert refusal.value.advice


def test_read_header_of_false_lengths_uses_little_memory(tmp_path: Path) -> None:
    """A sparse file of 20 GB with the largest allowed claims is rejected or skipped without being held in memory."""
    path = tmp_path / "liar.gguf"
    claims = [
        ARCHITECTURE,
        pair("a", 9, struct.pack("<IQ", 4, cursor.MAX_METADATA_BYTES // 4 - 1000)),
    ]
    path.write_bytes(header(claims, pair_count=3))
    os.truncate(path, 20 << 30)
    tracemalloc.start()
    with pytest.raises(InvalidModelFile):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * cursor.WINDOW


def test_read_header_rejects_non_files_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nothing", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(InvalidModelFile):
            read_header(path)
