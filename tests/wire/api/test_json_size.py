"""Values of a JSON text are counted before it is parsed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api import strict_json
from meshllm.wire.api.json_size import MAX_VALUES, has_too_many_values

VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


def count(value: object) -> int:
    """The values in a parsed text."""
    parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return 1 + sum(map(count, parts))


@given(VALUES, st.integers(1, 30))
def test_a_text_of_more_values_is_never_taken_for_one_of_fewer(value: object, limit: int) -> None:
    if count(value) > limit:
        assert has_too_many_values(json.dumps(value).encode(), limit)


@pytest.mark.parametrize(
    "text", ["[" + "[]," * MAX_VALUES + "0]", "[" + "0," * MAX_VALUES + "0]", "[" * (MAX_VALUES + 1)]
)
def test_texts_that_would_fill_the_memory_are_refused(text: str) -> None:
    assert has_too_many_values(text.encode())
    with pytest.raises(ValueError, match="too many values"):
        strict_json.loads(text)


def test_long_text_is_one_value() -> None:
    assert not has_too_many_values(json.dumps("word " * MAX_VALUES).encode())
