"""Compatibility of vocabularies for speculative decoding."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import pytest
from gguf_samples import header, pair, text
from hypothesis import given
from hypothesis import strategies as st

from meshllm.errors import InvalidModelFile
from meshllm.models.gguf import vocabulary
from meshllm.models.gguf.vocabulary import VocabularyIdentity, read_vocabulary_from

WORDS = [b"token %d" % number for number in range(300)]


def listed(words: list[bytes]) -> bytes:
    return pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, len(words)) + b"".join(text(word) for word in words))


def sample(
    words: list[bytes] = WORDS,
    *,
    model: str = "gpt2",
    pre: str = "qwen2",
    flags: dict[str, bool] | None = None,
    ids: dict[str, int] | None = None,
    more: list[bytes] | None = None,
) -> bytes:
    pairs = [
        pair("general.architecture", 8, text("llama")),
        pair("tokenizer.ggml.model", 8, text(model)),
        pair("tokenizer.ggml.pre", 8, text(pre)),
        *(pair(f"tokenizer.ggml.{name}", 7, bytes([value])) for name, value in (flags or {}).items()),
        *(pair(f"tokenizer.ggml.{name}", 4, struct.pack("<I", value)) for name, value in (ids or {}).items()),
        *(more or []),
        listed(words),
    ]
    return header(pairs)


def read(data: bytes) -> VocabularyIdentity:
    return read_vocabulary_from(io.BytesIO(data), len(data), "sample")


BEGINS = {"add_bos_token": True}

PAIRS = {
    "the same": sample(),
    "another pre-tokenizer": sample(pre="smollm"),
    "other first tokens": sample([b"other %d" % number for number in range(5)] + WORDS[5:]),
    "some fewer tokens": sample(WORDS[:-128]),
    "an id that is not put anywhere": sample(ids={"bos_token_id": 77}),
    "a list of types": sample(more=[pair("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, 1) + bytes(4))]),
    "what follows a zero byte": sample([*WORDS[:-1], WORDS[-1] + b"\0more"]),
}
DIFFERENT = {
    "kind": sample(model="llama"),
    "128": sample(WORDS[:-129]),
    "tokens differ": sample([*WORDS[:5], b"other", *WORDS[6:]]),
    "tokens differ ": sample([*WORDS[:-1], b"other"]),
    "tokens differ  ": sample([*WORDS[:-128], *(b"other %d" % number for number in range(3))]),
    "begin or end": sample(flags=BEGINS),
    "begin or end ": sample(pre="llama-bpe"),
    "begin or end  ": sample(flags={"add_eos_token": True}),
}


@pytest.mark.parametrize("what", PAIRS)
def test_compatible_vocabularies(what: str) -> None:
    one, other = read(sample()), read(PAIRS[what])
    assert one.incompatibility(other) == other.incompatibility(one) == ""
    assert (one.digest == other.digest) is (one.size == other.size)


@pytest.mark.parametrize("what", DIFFERENT)
def test_incompatible_vocabularies(what: str) -> None:
    one, other = read(sample()), read(DIFFERENT[what])
    assert what.strip() in one.incompatibility(other)
    assert what.strip() in other.incompatibility(one)
    assert one.digest != other.digest


def test_bos_token_counts_if_one_is_used() -> None:
    first, second = (read(sample(flags=BEGINS, ids={"bos_token_id": number})) for number in (7, 8))
    assert (first.begin, second.begin) == (7, 8)
    assert first.incompatibility(second)
    assert read(sample(flags=BEGINS)).begin == 11  # the engine's own word for this kind
    assert read(sample(flags=BEGINS, ids={"bos_token_id": 5000})).begin == 11  # there is no such token
    assert read(sample(flags=BEGINS, pre="glm4")).begin == -1
    assert read(sample(model="llama")).begin == 1
    assert read(sample(model="gemma4", flags={"add_bos_token": False})).begin == -1


def test_empty_token_gets_the_engines_name() -> None:
    unnamed = [*WORDS[:9], b"", *WORDS[10:]]
    assert read(sample(unnamed)) == read(sample([*WORDS[:9], b"[EMPTY_9]", *WORDS[10:]]))


@given(st.integers(1, 300), st.integers(1, 300))
def test_prefixes_pair_up_to_the_allowed_difference(one: int, other: int) -> None:
    first, second = read(sample(WORDS[:one], pre="")), read(sample(WORDS[:other], pre=""))
    assert (first.incompatibility(second) == "") is (abs(one - other) <= vocabulary.MAX_DIFFERENCE)
    assert first.incompatibility(replace(first, prefixes=(b"", *first.prefixes[1:])))


BAD = {
    "lists no tokens": header(),
    "lists no tokens ": sample([]),
    "'unheard of'": sample(model="unheard of"),
    "ends in the middle": sample()[:-1],
    "token 0 is": sample([bytes(vocabulary.MAX_TOKEN_BYTES + 1)]),
    "more than 4000000 strings": header([pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1 << 60))]),
    "begins with": b"GGML" + bytes(40),
}


@pytest.mark.parametrize("reason", BAD)
def test_invalid_vocabulary_error_names_the_reason(reason: str) -> None:
    with pytest.raises(InvalidModelFile) as refusal:
        read(BAD[reason])
    assert reason.strip() in refusal.value.message
