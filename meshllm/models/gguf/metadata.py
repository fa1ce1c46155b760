"""Reads the metadata of a GGUF file key by key; long lists are skipped.

Invariants: counts, lengths and numbers are checked against limits before use.
"""

from __future__ import annotations

from typing import Final

from .cursor import ARRAY, MAX_METADATA_BYTES, MAX_STRING_BYTES, SCALARS, STRING, Cursor, Damage

MAX_KEYS: Final = 16_384  # real files have some 30 to 100
MAX_KEY_BYTES: Final = 1024
MAX_TEXT_BYTES: Final = 1 << 20  # of a text that is kept; the longest chat templates have about 20 kB
MAX_TENSORS: Final = 65_536  # the largest models have some thousands
MAX_LAYER_LIST: Final = 4096  # arrays with one number per layer
MAX_LISTED: Final = 65_536  # numbers in all such arrays together
MAX_ALIGNMENT: Final = 1 << 20
MAX_NUMBER: Final = (1 << 32) - 1  # the engine stores sizes in 32 bits

TOKENS: Final = "tokenizer.ggml.tokens"
_TEXTS: Final = frozenset(
    {
        "general.architecture", "general.name", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre",
        "tokenizer.chat_template", "tokenizer.chat_template.tool_use",
    }
)  # fmt: skip
_PER_LAYER: Final = (
    ".attention.head_count", ".attention.head_count_kv", ".attention.sliding_window_pattern",
    ".attention.recurrent_layers", ".feed_forward_length", ".expert_feed_forward_length", ".expert_used_count",
)  # fmt: skip

Value = int | float | bool | str | tuple[int, ...]


class Metadata:
    """Small values by key, and the number of tokens in the vocabulary (0: none listed)."""

    def __init__(self, values: dict[str, Value], tokens: int = 0) -> None:
        self.values = values
        self.tokens = tokens

    def text(self, key: str) -> str:
        value = self.values.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """A non-negative number, or the largest of a list; 0 if missing."""
        value = self.values.get(key, 0)
        if isinstance(value, tuple):
            value = max(value, default=0)
        if isinstance(value, bool) or not isinstance(value, int):
            return 0
        return _checked(key, value)

    def by_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """A number per layer: a list padded with zeros, or one number for all."""
        value = self.values.get(key, 0)
        if isinstance(value, tuple):
            return tuple(_checked(key, number) for number in value[:layers]) + (0,) * (layers - len(value))
        return (self.number(key),) * layers


def _checked(key: str, value: int) -> int:
    if not 0 <= value <= MAX_NUMBER:
        raise Damage(f"the value of {key[:80]!r} is {value}, which is out of range")
    return int(value)


def _shown(raw: bytes) -> str:
    """Bytes of a file as printable text: ASCII as it is, other bytes as \\x..."""
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}" for byte in raw)


def read_start(cursor: Cursor) -> tuple[int, int]:
    """The number of tensors and of metadata keys, from the file's start."""
    if cursor.size < 24:
        raise Damage(f"it is only {cursor.size} bytes long")
    if (magic := cursor.take(4)) != b"GGUF":
        raise Damage(f"it begins with {_shown(magic)} instead of GGUF")
    version = cursor.u32()
    if version & 0xFFFF == 0:
        raise Damage("it is written in big-endian byte order")
    if version not in (2, 3):
        raise Damage(f"GGUF version {version} is not supported (supported: 2 and 3)")
    tensors, keys = cursor.u64(), cursor.u64()
    if tensors > MAX_TENSORS:
        raise Damage(f"it claims to hold {tensors} tensors, the limit is {MAX_TENSORS}")
    if keys > MAX_KEYS:
        raise Damage(f"it claims to hold {keys} metadata keys, the limit is {MAX_KEYS}")
    return tensors, keys


def read_key(cursor: Cursor, seen: set[bytes]) -> tuple[str, int]:
    """The next key and its value's type."""
    raw = cursor.text(MAX_KEY_BYTES, "a metadata key")
    if not raw or raw in seen:
        raise Damage(f"the metadata key {_shown(raw[:80])} occurs twice" if raw else "a metadata key is empty")
    seen.add(raw)
    return raw.decode("utf-8", "backslashreplace"), cursor.u32()


def read_metadata(cursor: Cursor, keys: int) -> Metadata:
    """Read all keys."""
    found = Metadata({})
    seen: set[bytes] = set()
    listed = 0
    for _ in range(keys):
        key, kind = read_key(cursor, seen)
        if kind == ARRAY:
            count, numbers = _read_array(cursor, key)
            if key == TOKENS:
                found.tokens = count
            if numbers is not None:
                listed += len(numbers)
                if listed > MAX_LISTED:
                    raise Damage(f"it lists more than {MAX_LISTED} numbers for layers")
                found.values[key] = numbers
        elif (value := read_value(cursor, key, kind)) is not None:
            found.values[key] = value
    return found


def read_value(cursor: Cursor, key: str, kind: int) -> int | float | bool | str | None:
    """A value that is no list; None for a text that is not used."""
    if kind == STRING:
        return _read_string(cursor, key)
    if kind not in SCALARS:
        raise Damage(f"the metadata key {key[:80]!r} has the unknown type {kind}")
    return cursor.scalar(kind)


def _read_string(cursor: Cursor, key: str) -> str | None:
    length = cursor.u64()
    if length > MAX_STRING_BYTES:
        raise Damage(f"the value of {key[:80]!r} is {length} bytes long, the limit is {MAX_STRING_BYTES}")
    if key not in _TEXTS:
        cursor.skip(length)
        return None
    if length > MAX_TEXT_BYTES:
        raise Damage(f"the value of {key[:80]!r} is {length} bytes long, the limit is {MAX_TEXT_BYTES}")
    return cursor.take(length).decode("utf-8", "replace")


def read_list_start(cursor: Cursor, key: str) -> tuple[int, int]:
    """The type of a list's items, and their number."""
    kind, count = cursor.u32(), cursor.u64()
    if kind != STRING and kind not in SCALARS:
        raise Damage(f"the metadata key {key[:80]!r} is a list of the unknown type {kind}")
    if kind != STRING and count > MAX_METADATA_BYTES:
        raise Damage(f"the metadata key {key[:80]!r} claims {count} items")
    return kind, count


def skip_list(cursor: Cursor, kind: int, count: int) -> None:
    """Skip the items of a list."""
    if kind == STRING:
        cursor.skip_strings(count)
    else:
        cursor.skip(count * SCALARS[kind].size)


def _read_array(cursor: Cursor, key: str) -> tuple[int, tuple[int, ...] | None]:
    """The number of items, and the items if it is a short list of integers (one per layer)."""
    kind, count = read_list_start(cursor, key)
    if kind == STRING or count > MAX_LAYER_LIST or not key.endswith(_PER_LAYER):
        skip_list(cursor, kind, count)
        return count, None
    form = SCALARS[kind]
    items = [row[0] for row in form.iter_unpack(cursor.take(count * form.size))]
    return count, tuple(item for item in items if isinstance(item, int))


def alignment(metadata: Metadata) -> int:
    """The alignment of tensors in bytes."""
    found = metadata.values.get("general.alignment", 32)
    if not isinstance(found, int) or not 0 < found <= MAX_ALIGNMENT or found & (found - 1):
        raise Damage(f"its alignment is {str(found)[:40]}, which is not a valid power of two")
    return found
