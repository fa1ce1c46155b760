"""Reads the vocabulary of a model file, and compares two vocabularies for speculative decoding.

Invariants: the file is hostile input and is read in one bounded pass, one token at a time. Compared is what the engine
compares (`common/speculative.cpp` at the pinned commit): the kind of tokenizer, BOS and EOS tokens, and the texts from
the sixth token on, up to the end of the smaller vocabulary, which may lack at most 128 tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from .cursor import ARRAY, STRING, Cursor, Damage
from .header import blaming, opened
from .metadata import TOKENS, Value, read_key, read_list_start, read_start, read_value, skip_list

MAX_TOKEN_BYTES: Final = 1 << 16  # real vocabularies have at most hundreds
FIRST_COMPARED: Final = 5
MAX_DIFFERENCE: Final = 128
_SHORT: Final = 16  # bytes of a truncated digest; 129 of them are kept

_KINDS: Final = {
    "llama": "spm", "bert": "wpm", "gpt2": "bpe", "hybriddna": "bpe", "whitespace": "bpe", "gemma4": "bpe", "t5": "ugm",
    "rwkv": "rwkv", "plamo2": "plamo2",
}  # fmt: skip
"""`tokenizer.ggml.model` -> the engine's kind of tokenizer."""

_BEGIN_AND_END: Final[dict[str, tuple[int, int]]] = {
    "llama": (1, 2), "bert": (101, -1), "gpt2": (11, 11), "hybriddna": (11, 11), "whitespace": (11, 11), "t5": (-1, 1),
    "plamo2": (1, 2),
}  # fmt: skip
"""Default BOS and EOS tokens; -1: none."""

_BEGINS: Final = frozenset(
    {
        "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
        "tekken", "chameleon",
    }
)  # fmt: skip
"""Pre-tokenizers that add a BOS token by default."""
_BEGINS_ALWAYS: Final = frozenset({"gemma4", "granite-embed-multi-311m"})
_NO_BEGIN: Final = frozenset({"chatglm-bpe", "glm4", "glm5"})


@dataclass(frozen=True, slots=True)
class VocabularyIdentity:
    """The compared properties. `begin`, `end`: ids of BOS and EOS, None if not added (-1: added, id unknown).
    `prefixes`: digests of all tokens' texts, of all but the last, and so on."""

    kind: str
    size: int
    begin: int | None
    end: int | None
    prefixes: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """Digest of the properties that matter for speculative decoding."""
        facts = f"{self.kind} {self.size} {self.begin} {self.end} {self.prefixes[0].hex()}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def incompatibility(self, other: VocabularyIdentity) -> str:
        """The reason why the engine refuses a draft model with this vocabulary; "" if it accepts."""
        if self.kind != other.kind:
            return f"one tokenizer is of kind {self.kind}, the other {other.kind}"
        if (self.begin, self.end) != (other.begin, other.end):
            return "texts begin or end with different tokens"
        small, large = sorted((self, other), key=lambda identity: identity.size)
        if (more := large.size - small.size) > MAX_DIFFERENCE:
            return f"one has {more} more tokens than the other, {MAX_DIFFERENCE} are allowed"
        return "" if large.prefixes[more] == small.prefixes[0] else "their tokens differ"


def read_vocabulary(path: Path) -> VocabularyIdentity:
    """The vocabulary of the file (of several parts: the first). Takes some 0.1 s for 250k tokens.

    Raises InvalidModelFile, also for a file without a vocabulary that the engine knows.
    """
    with opened(path) as (file, size):
        return read_vocabulary_from(file, size, str(path))


def read_vocabulary_from(file: BinaryIO, size: int, name: str) -> VocabularyIdentity:
    """The vocabulary of an open file of `size` bytes; `name` is its name in errors. Raises InvalidModelFile."""
    with blaming(name):
        cursor = Cursor(file, size)
        values: dict[str, Value] = {}
        seen: set[bytes] = set()
        tokens: tuple[int, tuple[bytes, ...]] | None = None
        for _ in range(read_start(cursor)[1]):
            key, kind = read_key(cursor, seen)
            if kind == ARRAY:
                items, count = read_list_start(cursor, key)
                if key == TOKENS and items == STRING:
                    tokens = count, _digests(cursor, count)
                else:
                    skip_list(cursor, items, count)
            elif (value := read_value(cursor, key, kind)) is not None:
                values[key] = value
        if tokens is None or not tokens[0]:
            raise Damage("it lists no tokens")
        return _identity(values, *tokens)


def _digests(cursor: Cursor, count: int) -> tuple[bytes, ...]:
    """Digests of the first `count` tokens' texts, of one less, and so on."""
    running, kept = hashlib.sha256(), [hashlib.sha256().digest()[:_SHORT]]
    for index, text in enumerate(_texts(cursor, count)):
        if index >= FIRST_COMPARED:
            running.update(len(text).to_bytes(4, "little"))
            running.update(text)
        if count - index <= MAX_DIFFERENCE + 1:
            kept.append(running.copy().digest()[:_SHORT])
    return tuple(reversed(kept[-MAX_DIFFERENCE - 1 :]))


def _texts(cursor: Cursor, count: int) -> Iterator[bytes]:
    """Token texts as the engine compares them: up to a zero byte, never empty."""
    cursor.begin_strings(count)
    for index in range(count):
        raw = cursor.text(MAX_TOKEN_BYTES, f"token {index}")
        yield raw.partition(b"\0")[0] if raw else b"[EMPTY_%d]" % index


def _identity(values: dict[str, Value], count: int, prefixes: tuple[bytes, ...]) -> VocabularyIdentity:
    model = str(values.get("tokenizer.ggml.model", ""))
    if model not in _KINDS:
        raise Damage(f"its tokenizer is {model[:40]!r}, which is unknown to this engine")
    kind = _KINDS[model]
    pre = "gemma4" if model == "gemma4" else str(values.get("tokenizer.ggml.pre", "")) if kind == "bpe" else ""
    begins = kind in ("spm", "wpm") or pre in _BEGINS
    begins = _told(values, "add_bos_token", begins) or pre in _BEGINS_ALWAYS
    ends = _told(values, "add_eos_token", kind == "ugm")
    begin, end = _BEGIN_AND_END.get(model, (-1, -1))
    begin = _token(values, "bos_token_id", -1 if pre in _NO_BEGIN else begin, count)
    end = _token(values, "eos_token_id", end, count)
    return VocabularyIdentity(kind, count, begin if begins else None, end if ends else None, prefixes)


def _told(values: dict[str, Value], key: str, otherwise: bool) -> bool:
    value = values.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, bool) else otherwise


def _token(values: dict[str, Value], key: str, usual: int, count: int) -> int:
    value = values.get(f"tokenizer.ggml.{key}")
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
        return value
    return usual if usual < count else -1
