"""Reads the tensor table of a GGUF file: size and layer of each tensor.

Invariants: the table is checked as the engine checks it: types, dimensions, offsets and the file's length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .cursor import Cursor, Damage
from .ggml_types import BLOCKS

MAX_TENSOR_NAME_BYTES: Final = 63  # the engine's limit
MAX_DIMENSIONS: Final = 4

_LAYER: Final = re.compile(rb"(?:enc\.|dec\.)?blk\.(\d{1,4})\.")
# Routed experts: one tensor per layer, or (files before 2024) one per expert. Shared experts ("shexp") do not match.
_EXPERTS: Final = re.compile(rb"\.ffn_(?:up|down|gate|gate_up)(?:_(?:ch)?exps\.|\.\d+\.)")
_INPUT: Final = re.compile(rb"(?:per_layer_)?token_embd|token_types|position_embd")
_CLASSIFIER: Final = frozenset({b"cls.weight", b"cls.output.weight"})
_HEAD: Final = b"output.weight"


@dataclass(slots=True)
class LayerBytes:
    """Bytes of one layer: all tensors, and its routed experts."""

    all: int = 0
    experts: int = 0


@dataclass(slots=True)
class TensorSums:
    """Sums over the tensors of one file, or of all parts of a model (`add`).

    `size` in bytes and `values` of all tensors; `by_type`: bytes per type; `layers` by number; `input`: bytes of the
    embeddings; `other`: bytes outside layers and embeddings.
    """

    count: int = 0
    size: int = 0
    values: int = 0
    input: int = 0
    other: int = 0
    head: bool = False
    classifier: bool = False
    by_type: dict[str, int] = field(default_factory=dict)
    layers: dict[int, LayerBytes] = field(default_factory=dict)
    names: set[bytes] = field(default_factory=set)

    @property
    def commonest(self) -> str:
        """The type of most weights."""
        return max(self.by_type, key=lambda kind: self.by_type[kind]) if self.by_type else ""

    def add(self, name: bytes, kind: str, values: int, size: int) -> None:
        """Add a tensor."""
        if name in self.names:
            raise Damage(f"the tensor {name!r} occurs twice")
        self.names.add(name)
        self.count += 1
        self.size += size
        self.values += values
        self.by_type[kind] = self.by_type.get(kind, 0) + size
        self.head = self.head or name == _HEAD
        self.classifier = self.classifier or name in _CLASSIFIER
        if match := _LAYER.match(name):
            layer = self.layers.setdefault(int(match[1]), LayerBytes())
            layer.all += size
            if _EXPERTS.search(name):
                layer.experts += size
        elif _INPUT.match(name):
            self.input += size
        else:
            self.other += size


def read_tensors(cursor: Cursor, count: int, alignment: int, table: TensorSums) -> None:
    """Read `count` tensors into `table` and check the length of the file."""
    total = end = 0
    for _ in range(count):
        name = cursor.text(MAX_TENSOR_NAME_BYTES, "a tensor name")
        values, kind, size = _read_shape(cursor, name)
        offset = cursor.u64()
        if offset != total:
            raise Damage(f"the tensor {name!r} is at offset {offset} instead of {total}")
        end = offset + size
        total = -(-end // alignment) * alignment
        table.add(name, kind, values, size)
    begin = -(-cursor.position // alignment) * alignment
    if count and begin + end > cursor.size:
        raise Damage(f"it is truncated: {cursor.size} bytes instead of {begin + end}")


def _read_shape(cursor: Cursor, name: bytes) -> tuple[int, str, int]:
    """Number of values, type name and bytes of a tensor."""
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        raise Damage(f"the tensor {name!r} has {dimensions} dimensions, the limit is {MAX_DIMENSIONS}")
    shape: Sequence[int] = [cursor.u64() for _ in range(dimensions)]
    number = cursor.u32()
    if number not in BLOCKS:
        raise Damage(f"the tensor {name!r} has the unknown type {number}")
    kind, per_block, block_bytes = BLOCKS[number]
    row, elements = (shape[0] if shape else 1), 1
    for extent in shape:
        elements *= extent
    if elements >= 1 << 63 or any(extent >= 1 << 63 for extent in shape):
        raise Damage(f"the tensor {name!r} is too large")
    if row % per_block:
        raise Damage(f"the tensor {name!r} has rows of {row} values, which is not a multiple of {per_block}")
    return elements, kind, elements // per_block * block_bytes
