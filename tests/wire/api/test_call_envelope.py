"""Envelopes: their schema, and the pieces of their text however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api.call_envelope import EnvelopeReader, Piece, envelope_schema

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TREE = {
    "type": "object",
    "properties": {"child": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}},
    "$defs": {"leaf": {}},
}


def read(texts: list[str]) -> tuple[str, str, str]:
    """Name, arguments and answer."""
    reader, found = EnvelopeReader(), dict.fromkeys(Piece, "")
    for text in texts:
        for piece, value in reader.feed(text):
            found[piece] += value
    rest = "" if reader.called else reader.rest()
    return found[Piece.NAME], found[Piece.ARGUMENTS], found[Piece.ANSWER] + rest


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(alphabet='ab"\\{}[] ,:é', max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(st.text(min_size=1, max_size=8), values, st.data())
def test_call_is_read_however_it_is_cut(name: str, arguments: Any, data: st.DataObject) -> None:
    text = json.dumps({"name": name, "arguments": arguments}, indent=data.draw(st.sampled_from([None, 1])))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = read(pieces)
    assert (found[0], json.loads(found[1]), found[2]) == (name, arguments, "")


@given(values, st.data())
def test_answer_is_read_however_it_is_cut(answer: Any, data: st.DataObject) -> None:
    text = json.dumps({"answer": answer})
    cut = data.draw(st.integers(0, len(text)))
    found = read([text[:cut], text[cut:]])
    assert (found[:2], json.loads(found[2])) == (("", ""), answer)


@pytest.mark.parametrize("text", ["Hello", "", '{"other": 1}', '{"name": "a"', "{" * 5000])
def test_other_text_is_an_answer(text: str) -> None:
    assert read(list(text)) == ("", "", text)


def test_arguments_cut_by_the_limit_are_passed_on() -> None:
    assert read(['{"name": "a", "arguments": {"b": "c']) == ("a", '{"b": "c', "")


def test_schema_of_one_tool_is_its_call() -> None:
    schema = envelope_schema([("weather", CITY)], None)
    assert schema["properties"] == {"name": {"const": "weather"}, "arguments": CITY}
    assert (schema["required"], schema["additionalProperties"]) == (["name", "arguments"], False)


def test_schema_of_several_tools_and_an_answer_is_a_choice() -> None:
    schema = envelope_schema([("a", {}), ("b", CITY)], CITY)
    assert [list(choice["properties"]) for choice in schema["anyOf"]] == [["name", "arguments"]] * 2 + [["answer"]]
    assert schema["anyOf"][0]["properties"]["arguments"] == {"type": "object"}


def test_references_to_the_root_of_a_schema_move_with_it() -> None:
    schema = envelope_schema([("a", CITY), ("tree", TREE)], None)
    assert schema["anyOf"][1]["properties"]["arguments"] == {"$ref": "#/$defs/tool1"}
    moved = schema["$defs"]["tool1"]
    assert moved["properties"] == {"child": {"$ref": "#/$defs/tool1"}, "leaf": {"$ref": "#/$defs/tool1/$defs/leaf"}}
