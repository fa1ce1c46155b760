"""Reads the header of a GGUF file: architecture, sizes, tensors, template; not the weights.

Invariants: the file is hostile input; an invalid one raises InvalidModelFile with the reason. A file that changes
while it is read cannot crash the reader.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from meshllm.core.memory.model_shape import ModelShape
from meshllm.errors import DamagedModelFile, InvalidModelFile

from .cursor import Cursor, Damage
from .ggml_types import FILE_TYPES
from .metadata import Metadata, alignment, read_metadata, read_start
from .shape import shape_of
from .tensors import TensorSums, read_tensors

POOLING_NONE, POOLING_MEAN, POOLING_CLS, POOLING_LAST, POOLING_RANK = range(5)
"""`{architecture}.pooling_type` -> pooling of token embeddings."""

# The engine keeps it in a C int. With 0 it loads the model, and aborts at the first request.
MAX_CONTEXT_LENGTH: Final = 2**31 - 1
_GUESSED: Final = 1024  # flag in the file type: guessed by the converter


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file. Missing numbers are 0, missing texts empty.

    `kind` is `general.type` ("model", "adapter", "mmproj", ...). `heads` and `kv_heads` are the maximum of all layers;
    `key_length` and `value_length` are values per head; `sliding_window` is in tokens (`shape` says which layers use
    it). `quantization` is the file type's name ("Q4_K_M"), else the most common tensor type. `pooling` is a `POOLING_`
    number (none if missing); `causal`: attention to earlier tokens only; `classifier`: has a scoring head.
    `tool_template`: there is a second chat template, for requests with tools.

    `tensor_count`, `tensor_bytes`, `parameters` and `shape` cover this file, or all parts after `read_whole`.
    """

    architecture: str
    kind: str
    name: str
    context_length: int
    layers: int
    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    embedding_length: int
    experts: int
    experts_used: int
    experts_shared: int
    sliding_window: int
    vocabulary_size: int
    tokenizer: str
    chat_template: str | None
    tool_template: bool
    quantization: str
    pooling: int
    causal: bool
    classifier: bool
    tensor_count: int
    tensor_bytes: int
    parameters: int
    part: int
    parts: int
    shape: ModelShape


def read_header(path: Path) -> Header:
    """The header of the file at `path`. Raises InvalidModelFile; never blocks on a pipe or device."""
    with opened(path) as (file, size):
        return read_header_from(file, size, str(path))


def read_header_from(file: BinaryIO, size: int, name: str) -> Header:
    """The header of an open file of `size` bytes; `name` is its name in errors. Raises InvalidModelFile."""
    with blaming(name):
        cursor, table = Cursor(file, size), TensorSums()
        tensors, keys = read_start(cursor)
        metadata = read_metadata(cursor, keys)
        read_tensors(cursor, tensors, alignment(metadata), table)
        return _header(metadata, table)


def read_whole(paths: Sequence[Path]) -> Header:
    """The header of a model whose parts are the files `paths`, in order; its tensors are those of all of them.

    Raises InvalidModelFile, also where these are not all the parts of one model. The first may hold no tensors.
    """
    if len(paths) == 1:
        return read_header(paths[0])
    table = TensorSums()
    parts = [_read_one_of(path, index, len(paths), table) for index, path in enumerate(paths)]
    with blaming(str(paths[0])):
        promised = parts[0].number("split.tensors.count")
        if promised and promised != table.count:
            raise Damage(f"its parts hold {table.count} tensors instead of {promised}")
        return _header(parts[0], table)


def _read_one_of(path: Path, index: int, count: int, table: TensorSums) -> Metadata:
    """Add the tensors of part `index` of `count` to `table`."""
    with opened(path) as (file, size), blaming(str(path)):
        cursor = Cursor(file, size)
        tensors, keys = read_start(cursor)
        metadata = read_metadata(cursor, keys)
        part, parts = metadata.number("split.no"), metadata.number("split.count")
        if (part, parts) != (index, count):
            raise Damage(f"it is part {part + 1} of {parts} instead of part {index + 1} of {count}")
        read_tensors(cursor, tensors, alignment(metadata), table)
        return metadata


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes. Raises InvalidModelFile; never blocks on a pipe or device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise InvalidModelFile(
            f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}.",
            advice="Make it readable for this user, or use another GGUF file.",
        ) from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise _invalid(str(path), "it is not a regular file")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield file, facts.st_size


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn errors inside into InvalidModelFile errors about `name`."""
    try:
        yield
    except Damage as damage:
        raise _invalid(name, str(damage)) from None
    except OSError as error:
        raise _invalid(name, f"reading it failed ({error.strerror or error})") from error


def _invalid(name: str, reason: str) -> InvalidModelFile:
    return DamagedModelFile(
        f"{name} is not a usable GGUF file: {reason}.",
        advice="Download it again, or use another GGUF file.",
        reason=reason,
    )


def _header(metadata: Metadata, table: TensorSums) -> Header:
    architecture, part = metadata.text("general.architecture"), metadata.number("split.no")
    # Only the first part names the architecture.
    named = architecture or "-" * bool(part)
    if not 0 < len(named) <= 64 or not named.isascii() or not named.isprintable():
        raise Damage("it names no architecture (general.architecture)")

    def number(key: str) -> int:
        return metadata.number(f"{architecture}.{key}")

    if (pooling := number("pooling_type")) > POOLING_RANK:
        raise Damage(f"its pooling type {pooling} is unknown to this engine")
    key = f"{architecture}.context_length"
    if key in metadata.values and not 0 < number("context_length") <= MAX_CONTEXT_LENGTH:
        raise Damage(f"its context length ({key}) is {number('context_length')}")
    shape = shape_of(metadata, table)
    heads = number("attention.head_count")
    even = shape.width // heads if heads else 0
    mixture = metadata.values.get("general.file_type")
    file_type = FILE_TYPES.get(mixture & ~_GUESSED, "") if isinstance(mixture, int) else ""
    return Header(
        architecture=architecture,
        kind=metadata.text("general.type") or "model",
        name=metadata.text("general.name"),
        context_length=number("context_length"),
        layers=len(shape.layers),
        heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        key_length=number("attention.key_length") or even,
        value_length=number("attention.value_length") or even,
        embedding_length=shape.width,
        experts=shape.experts,
        experts_used=shape.experts_used,
        experts_shared=number("expert_shared_count"),
        sliding_window=number("attention.sliding_window"),
        vocabulary_size=shape.vocabulary,
        tokenizer=metadata.text("tokenizer.ggml.model"),
        chat_template=metadata.text("tokenizer.chat_template") or None,
        tool_template=bool(metadata.text("tokenizer.chat_template.tool_use")),
        quantization=file_type or table.commonest,
        pooling=pooling,
        causal=metadata.values.get(f"{architecture}.attention.causal") is not False,
        classifier=table.classifier,
        tensor_count=table.count,
        tensor_bytes=table.size,
        parameters=table.values,
        part=part,
        parts=max(1, metadata.number("split.count")),
        shape=shape,
    )
