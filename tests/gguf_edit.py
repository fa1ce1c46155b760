"""Changes one value in the header of a real GGUF file, as broken converters do."""

from __future__ import annotations

import struct
from pathlib import Path

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST, ALIGNMENT = 8, 9, 32


def with_value(source: Path, target: Path, key: str, value: int | str) -> Path:
    """Write `source` to `target` with another number (32 bits) or text for `key`."""
    data = source.read_bytes()
    kinds, end = _positions(data)
    kind, begin, stop = kinds[key]
    if isinstance(value, int):
        assert kind in (4, 5)
        new = struct.pack("<I", value)
    else:
        assert kind == TEXT
        new = struct.pack("<Q", len(value.encode())) + value.encode()
    infos = _tensors_end(data, end)
    head = data[:begin] + new + data[stop:infos]
    weights = data[-(-infos // ALIGNMENT) * ALIGNMENT :]
    target.write_bytes(head + bytes(-len(head) % ALIGNMENT) + weights)
    return target


def _number(data: bytes, form: str, at: int) -> int:
    return int(struct.unpack_from(form, data, at)[0])


def _skip(data: bytes, kind: int, at: int) -> int:
    if kind == TEXT:
        return at + 8 + _number(data, "<Q", at)
    if kind != LIST:
        return at + SIZES[kind]
    inner, count = _number(data, "<I", at), _number(data, "<Q", at + 4)
    at += 12
    for _ in range(count):
        at = _skip(data, inner, at)
    return at


def _positions(data: bytes) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Type, begin and end of each value; where the tensors begin."""
    at, found = 24, {}
    for _ in range(_number(data, "<Q", 16)):
        length = _number(data, "<Q", at)
        key = data[at + 8 : at + 8 + length].decode()
        kind, begin = _number(data, "<I", at + 8 + length), at + 12 + length
        at = _skip(data, kind, begin)
        found[key] = (kind, begin, at)
    return found, at


def _tensors_end(data: bytes, at: int) -> int:
    for _ in range(_number(data, "<Q", 8)):
        at += 8 + _number(data, "<Q", at)
        at += 4 + 8 * _number(data, "<I", at) + 12
    return at
