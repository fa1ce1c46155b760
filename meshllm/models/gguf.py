"""Reads the header of a GGUF file: what the model is, without reading its weights.

Law: the file is hostile. Every count and length is bounded before it is used, nothing big is ever held in memory, and
whatever is wrong ends in one `InvalidModelFile` with a reason. What llama.cpp refuses is refused here, before an engine
is started for it. The layout is that of llama.cpp's `ggml/include/gguf.h`, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from meshllm.errors import InvalidModelFile

from .ggml_types import BLOCKS, FILE_TYPES

MAX_KEYS: Final = 16_384  # real files have some 30 to 100
MAX_KEY_BYTES: Final = 1024
MAX_TEXT_BYTES: Final = 1 << 20  # of a text we keep; the longest chat templates are some 20 kB
MAX_STRING_BYTES: Final = 64 << 20  # some converters embed a whole tokenizer.json (17-30 MB)
MAX_STRINGS: Final = 4_000_000  # in all lists of a file together; the largest vocabularies are near 1 million
MAX_METADATA_BYTES: Final = 256 << 20
MAX_TENSORS: Final = 65_536  # the largest models have some thousands
MAX_TENSOR_NAME_BYTES: Final = 63  # what the engine takes
MAX_DIMENSIONS: Final = 4
MAX_LAYER_LIST: Final = 4096  # arrays with one number per layer
MAX_ALIGNMENT: Final = 1 << 20

POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST, POOLING_RANK = range(5)
"""How the tokens' vectors become one, as `{architecture}.pooling_type` numbers it."""

_CLASSIFIER: Final = frozenset({b"cls.weight", b"cls.output.weight"})
_WINDOW: Final = 1 << 20
_GUESSED: Final = 1024  # a flag in the file type: the converter was not sure
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip

Value = int | float | bool | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of its model. Numbers that the file does not give are 0, texts empty.

    `kind` is `general.type` ("model", "adapter", "mmproj", ...). `heads` and `kv_heads` are the largest of all layers.
    `quantization` is the file type's name ("Q4_K_M"), or the type most of the weights have. `tensor_bytes` and
    `parameters` are sums over the tensor table of this file (one part, if `parts` > 1). `pooling` is one of the
    `POOLING_` numbers (none, if the file does not say); `causal`: a token sees only those before it; `classifier`: this
    file holds a head that gives scores.
    """

    architecture: str
    kind: str
    name: str
    context_length: int
    layers: int
    heads: int
    kv_heads: int
    embedding_length: int
    experts: int
    experts_used: int
    vocabulary_size: int
    tokenizer: str
    chat_template: str | None
    quantization: str
    pooling: int
    causal: bool
    classifier: bool
    tensor_count: int
    tensor_bytes: int
    parameters: int
    part: int
    parts: int


def read_header(path: Path) -> Header:
    """The header of the file at `path`. Raises InvalidModelFile; never blocks on a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise _invalid(str(path), f"it cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise _invalid(str(path), "it is not a regular file")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return read_header_from(file, facts.st_size, str(path))


def read_header_from(file: BinaryIO, size: int, name: str) -> Header:
    """The header of an open file of `size` bytes; `name` is what to call it in errors. Raises InvalidModelFile."""
    try:
        return _read(_Cursor(file, size))
    except _Damage as damage:
        raise _invalid(name, str(damage)) from None
    except OSError as error:
        raise _invalid(name, f"reading it failed ({error.strerror or error})") from error


def _invalid(name: str, reason: str) -> InvalidModelFile:
    return InvalidModelFile(
        f"{name} is not a usable GGUF file: {reason}.",
        advice="Download it again, or point to another GGUF file.",
    )


class _Damage(Exception):
    """The reason why a file is refused."""


class _Cursor:
    """Walks through a file by a window of bytes, forwards only; raises `_Damage` instead of going past the end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._window = b""
        self._start = 0  # where the window begins in the file
        self._at = 0  # where we are in the window; may lie behind its end after a skip
        self._strings_left = MAX_STRINGS

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def size(self) -> int:
        return self._size

    def _need(self, count: int) -> None:
        """Have `count` bytes in the window from where we are."""
        if self._at + count <= len(self._window):
            return
        position = self.position
        if position + count > self._size:
            raise _Damage(f"it ends in the middle of the header, at byte {self._size}")
        if position + count > MAX_METADATA_BYTES:
            raise _Damage(f"its header is larger than {MAX_METADATA_BYTES >> 20} MiB")
        self._file.seek(position)
        wanted = max(count, _WINDOW)
        parts = []
        while wanted > 0 and (part := self._file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self._window, self._start, self._at = b"".join(parts), position, 0
        if len(self._window) < count:
            raise _Damage("it became shorter while it was read")

    def take(self, count: int) -> bytes:
        self._need(count)
        self._at += count
        return self._window[self._at - count : self._at]

    def skip(self, count: int) -> None:
        if self.position + count > self._size:
            raise _Damage(f"it ends in the middle of the header, at byte {self._size}")
        if self.position + count > MAX_METADATA_BYTES:
            raise _Damage(f"its header is larger than {MAX_METADATA_BYTES >> 20} MiB")
        self._at += count

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def scalar(self, kind: int) -> int | float | bool:
        form = _SCALARS[kind]
        value: int | float | bool = form.unpack(self.take(form.size))[0]
        return value

    def text(self, limit: int, what: str) -> bytes:
        length = self.u64()
        if length > limit:
            raise _Damage(f"{what} is {length} bytes long, {limit} are allowed")
        return self.take(length)

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings; this loop is where the time goes (some 100,000 in an ordinary file)."""
        self._strings_left -= count
        if self._strings_left < 0:
            raise _Damage(f"it holds more than {MAX_STRINGS} strings")
        if self.position + 8 * count > self._size:
            raise _Damage(f"it ends in the middle of the header, at byte {self._size}")
        unpack = _U64.unpack_from
        while count:
            self._need(8)
            window, at, index = self._window, self._at, 0
            try:
                for index in range(count):  # noqa: B007 - how far it came is used below
                    at += unpack(window, at)[0] + 8
                index = count
            except (struct.error, OverflowError):  # the next length lies behind the window
                pass
            if at - len(window) > MAX_STRING_BYTES:
                raise _Damage(f"a string in a list is longer than the {MAX_STRING_BYTES} bytes that are allowed")
            count -= index
            self._at = at
        self.skip(0)


def _read(cursor: _Cursor) -> Header:
    if cursor.size < 24:
        raise _Damage(f"it is only {cursor.size} bytes long")
    if (magic := cursor.take(4)) != b"GGUF":
        raise _Damage(f"it begins with {magic!r} instead of b'GGUF'")
    version = cursor.u32()
    if version & 0xFFFF == 0:
        raise _Damage("it is written in big-endian byte order")
    if version not in (2, 3):
        raise _Damage(f"it is of GGUF version {version}; versions 2 and 3 are understood")
    tensors, keys = cursor.u64(), cursor.u64()
    if tensors > MAX_TENSORS:
        raise _Damage(f"it claims to hold {tensors} tensors, {MAX_TENSORS} are allowed")
    if keys > MAX_KEYS:
        raise _Damage(f"it claims to hold {keys} metadata keys, {MAX_KEYS} are allowed")
    values, vocabulary = _read_metadata(cursor, keys)
    table = _read_tensors(cursor, tensors, _alignment(values))
    return _header(values, vocabulary, table)


def _read_metadata(cursor: _Cursor, keys: int) -> tuple[dict[str, Value], int]:
    """The values that are small, by key, and the number of tokens in the vocabulary."""
    values: dict[str, Value] = {}
    seen: set[bytes] = set()
    vocabulary = 0
    for _ in range(keys):
        raw = cursor.text(MAX_KEY_BYTES, "a metadata key")
        if not raw or raw in seen:
            raise _Damage(f"the metadata key {raw[:80]!r} is {'empty' if not raw else 'there twice'}")
        seen.add(raw)
        key = raw.decode("utf-8", "backslashreplace")
        kind = cursor.u32()
        if kind == _ARRAY:
            count, numbers = _read_array(cursor, key)
            if key == "tokenizer.ggml.tokens":
                vocabulary = count
            if numbers is not None:
                values[key] = numbers
        elif kind == _STRING:
            if (text := _read_string(cursor, key)) is not None:
                values[key] = text
        elif kind in _SCALARS:
            values[key] = cursor.scalar(kind)
        else:
            raise _Damage(f"the metadata key {key[:80]!r} has the unknown type {kind}")
    return values, vocabulary


def _read_string(cursor: _Cursor, key: str) -> str | None:
    length = cursor.u64()
    if length > MAX_STRING_BYTES:
        raise _Damage(f"the value of {key[:80]!r} is {length} bytes long, {MAX_STRING_BYTES} are allowed")
    if not (key.startswith("general.") or key in ("tokenizer.ggml.model", "tokenizer.chat_template")):
        cursor.skip(length)
        return None
    if length > MAX_TEXT_BYTES:
        raise _Damage(f"the value of {key[:80]!r} is {length} bytes long, {MAX_TEXT_BYTES} are allowed")
    return cursor.take(length).decode("utf-8", "replace")


def _read_array(cursor: _Cursor, key: str) -> tuple[int, tuple[int, ...] | None]:
    """How many items the array has, and the items if it is a short one of whole numbers (one per layer)."""
    kind, count = cursor.u32(), cursor.u64()
    if kind == _STRING:
        cursor.skip_strings(count)
        return count, None
    if kind not in _SCALARS:
        raise _Damage(f"the metadata key {key[:80]!r} is a list of the unknown type {kind}")
    form = _SCALARS[kind]
    if count > MAX_METADATA_BYTES:
        raise _Damage(f"the metadata key {key[:80]!r} claims {count} items")
    if count > MAX_LAYER_LIST or not key.endswith((".head_count", ".head_count_kv")):
        cursor.skip(count * form.size)
        return count, None
    items = [row[0] for row in form.iter_unpack(cursor.take(count * form.size))]
    return count, tuple(item for item in items if isinstance(item, int))


def _alignment(values: dict[str, Value]) -> int:
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _Damage(f"its alignment is {str(alignment)[:40]}, which is not a power of two that makes sense")
    return alignment


@dataclass(frozen=True, slots=True)
class _Table:
    count: int
    bytes: int
    values: int
    commonest: str
    classifier: bool


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> _Table:
    """Read the tensor table and check that the file is long enough for what the table promises."""
    names: set[bytes] = set()
    total = values = end = stored = 0
    by_type: dict[str, int] = {}
    for _ in range(count):
        name = cursor.text(MAX_TENSOR_NAME_BYTES, "a tensor name")
        if name in names:
            raise _Damage(f"the tensor {name!r} is there twice")
        names.add(name)
        elements, kind, size = _read_shape(cursor, name)
        offset = cursor.u64()
        if offset != total:
            raise _Damage(f"the tensor {name!r} lies at offset {offset} where {total} is expected")
        end = offset + size
        total = -(-end // alignment) * alignment
        values += elements
        stored += size
        by_type[kind] = by_type.get(kind, 0) + size
    begin = -(-cursor.position // alignment) * alignment
    if count and begin + end > cursor.size:
        raise _Damage(f"it is cut off: {cursor.size} bytes long, its tensors reach to byte {begin + end}")
    commonest = max(by_type, key=lambda kind: by_type[kind]) if by_type else ""
    return _Table(count, stored, values, commonest, not names.isdisjoint(_CLASSIFIER))


def _read_shape(cursor: _Cursor, name: bytes) -> tuple[int, str, int]:
    """Number of values, type name and size in bytes of one tensor."""
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        raise _Damage(f"the tensor {name!r} has {dimensions} dimensions, {MAX_DIMENSIONS} are allowed")
    shape = [cursor.u64() for _ in range(dimensions)]
    number = cursor.u32()
    if number not in BLOCKS:
        raise _Damage(f"the tensor {name!r} is of type {number}, which this engine does not know")
    kind, per_block, block_bytes = BLOCKS[number]
    row, elements = (shape[0] if shape else 1), 1
    for extent in shape:
        elements *= extent
    if elements >= 1 << 63 or any(extent >= 1 << 63 for extent in shape):
        raise _Damage(f"the tensor {name!r} is impossibly large")
    if row % per_block:
        raise _Damage(f"the tensor {name!r} has rows of {row} values, which is not a multiple of {per_block}")
    return elements, kind, elements // per_block * block_bytes


def _header(values: dict[str, Value], vocabulary: int, table: _Table) -> Header:
    def text(key: str) -> str:
        value = values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(key: str) -> int:
        value = values.get(key, 0)
        if isinstance(value, tuple):
            value = max(value, default=0)
        if isinstance(value, bool) or not isinstance(value, int):
            return 0
        if not 0 <= value < 1 << 32:
            raise _Damage(f"the value of {key[:80]!r} is {value}, which makes no sense")
        return value

    architecture = text("general.architecture")
    if not 0 < len(architecture) <= 64 or not architecture.isascii() or not architecture.isprintable():
        raise _Damage("it does not say which architecture the model has")
    if (pooling := number(f"{architecture}.pooling_type")) > POOLING_RANK:
        raise _Damage(f"it asks for pooling of type {pooling}, which this engine does not know")
    mixture = values.get("general.file_type")
    file_type = FILE_TYPES.get(mixture & ~_GUESSED, "") if isinstance(mixture, int) else ""
    return Header(
        architecture=architecture,
        kind=text("general.type") or "model",
        name=text("general.name"),
        context_length=number(f"{architecture}.context_length"),
        layers=number(f"{architecture}.block_count"),
        heads=number(f"{architecture}.attention.head_count"),
        kv_heads=number(f"{architecture}.attention.head_count_kv") or number(f"{architecture}.attention.head_count"),
        embedding_length=number(f"{architecture}.embedding_length"),
        experts=number(f"{architecture}.expert_count"),
        experts_used=number(f"{architecture}.expert_used_count"),
        vocabulary_size=vocabulary or number(f"{architecture}.vocab_size"),
        tokenizer=text("tokenizer.ggml.model"),
        chat_template=text("tokenizer.chat_template") or None,
        quantization=file_type or table.commonest,
        pooling=pooling,
        causal=values.get(f"{architecture}.attention.causal") is not False,
        classifier=table.classifier,
        tensor_count=table.count,
        tensor_bytes=table.bytes,
        parameters=table.values,
        part=number("split.no"),
        parts=max(1, number("split.count")),
    )
