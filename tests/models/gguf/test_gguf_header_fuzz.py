"""Mutated headers are read or rejected, with little memory and without reading bytes twice."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshllm.errors import InvalidModelFile
from meshllm.models.gguf.cursor import WINDOW
from meshllm.models.gguf.header import read_header_from, read_whole
from meshllm.models.gguf.vocabulary import read_vocabulary_from
from tests import engine_shapes

# Values that overflow something, somewhere.
EDGES = [0, 1, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


class Counting(io.BytesIO):
    """A file that counts the bytes read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.given = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.given += len(found)
        return found


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Headers of three different models."""
    folder = tmp_path_factory.mktemp("originals")
    found = []
    for name in ("llama Q4_0", "deepseek2", "jamba"):
        path = folder / f"{name}.gguf"
        engine_shapes.write(path, name)
        found.append(path.read_bytes()[:80_000])
    return found


@st.composite
def mutations(draw: st.DrawFn, length: int = 80_000) -> list[tuple[str, int, int, int]]:
    """A mutation: operation, offset, length or value, source."""
    operation = st.sampled_from(["flip", "edge32", "edge64", "cut", "drop", "repeat", "move"])
    # The beginning and the end of a header hold its counts and its tensors: most mutations go there.
    place = st.one_of(st.integers(0, 2000), st.integers(60_000, length), st.integers(0, length))
    one = st.tuples(operation, place, st.integers(0, 600), place)
    return draw(st.lists(one, min_size=1, max_size=6))


def mutate(data: bytes, changes: list[tuple[str, int, int, int]]) -> bytes:
    for operation, at, amount, source in changes:
        at, edge = min(at, len(data)), EDGES[amount % len(EDGES)]
        match operation:
            case "flip":
                data = data[:at] + bytes([amount % 256]) + data[at + 1 :]
            case "edge32":
                data = data[:at] + struct.pack("<I", edge & 0xFFFFFFFF) + data[at + 4 :]
            case "edge64":
                data = data[:at] + struct.pack("<Q", edge) + data[at + 8 :]
            case "cut":
                data = data[: max(at, 24)]
            case "drop":
                data = data[:at] + data[at + amount :]
            case "repeat":
                data = data[:at] + data[at : at + amount] + data[at:]
            case _:
                data = data[:at] + data[source : source + amount] + data[at:]
    return data


def read_both(data: bytes) -> None:
    """Read header and vocabulary, or reject them, reading each byte about once for each."""
    for reader in (read_header_from, read_vocabulary_from):
        file = Counting(data)
        with contextlib.suppress(InvalidModelFile):
            reader(file, len(data), "sample")
        assert file.given <= 2 * len(data) + WINDOW


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), changes=mutations())
def test_mutated_real_headers(originals: list[bytes], which: int, changes: list[tuple[str, int, int, int]]) -> None:
    read_both(mutate(originals[which], changes))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 2), second=st.integers(0, 2), cut=st.integers(24, 80_000), on=st.integers(0, 80_000))
def test_spliced_headers(originals: list[bytes], first: int, second: int, cut: int, on: int) -> None:
    read_both(originals[first][:cut] + originals[second][on:])


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=600), tensors=st.integers(0, 5), keys=st.integers(0, 8))
def test_random_bytes_after_a_valid_start(data: bytes, tensors: int, keys: int) -> None:
    read_both(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + data)


def test_false_claims_use_little_memory(originals: list[bytes]) -> None:
    tracemalloc.start()
    for data in originals:
        for at in range(8, 160, 8):
            for edge in EDGES[-5:]:
                read_both(data[:at] + struct.pack("<Q", edge) + data[at + 8 :])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * WINDOW


def test_mutated_parts_are_rejected(tmp_path: Path, originals: list[bytes]) -> None:
    files = [tmp_path / f"{number}.gguf" for number in range(2)]
    for file, data in zip(files, originals, strict=False):
        file.write_bytes(data)
    with pytest.raises(InvalidModelFile):
        read_whole(files)
