"""Schemas of answers are kept in full or refused with the keyword; a real engine judges them in tests/e2e."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.wire.api.refusal import Refusal, ToolSchemaProblem
from meshllm.wire.api.schemas import for_answer, for_strict_tool

INT = {"type": "integer"}
TEXT = {"type": "string"}
PERCENT = [tenths // 10 if tenths % 10 == 0 else tenths / 10 for tenths in range(1001)]


def written(schema: Any) -> Any:
    """The schema of the answer itself, without the reference at the top."""
    kept = for_answer(schema)
    assert isinstance(kept, dict), kept
    if "$ref" not in kept:
        return kept
    definitions = dict(kept["$defs"])
    return definitions.pop(kept["$ref"].rsplit("/", 1)[1])


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def objects(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "object", "title": "A", "$schema": "x"}, {"type": "object"}),
        (objects("a", a=TEXT, b={"default": 1}), closed({"a": TEXT, "b": {}}, "a")),
        (objects("b", a=INT), closed({"a": INT, "b": {}}, "b")),
        (objects(a=INT) | {"additionalProperties": TEXT}, closed({"a": INT})),
        ({"properties": {"a": INT}}, closed({"a": INT})),
        (objects(a=False, b=True), closed({"b": {}})),
        (objects("a", a=INT) | {"anyOf": [{"required": ["a"]}]}, closed({"a": INT}, "a")),
        (
            objects(a=INT, b=INT) | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            {"anyOf": [closed({"a": INT, "b": INT}, "a"), closed({"a": INT, "b": INT}, "b")]},
        ),
        (objects(a={"allOf": [TEXT, {"enum": ["x", 1]}]}), closed({"a": {"enum": ["x"]}})),
        (
            {"allOf": [objects("a", a=INT), objects(b=TEXT), {"properties": {"a": {"maximum": 3, "minimum": 0}}}]},
            closed({"a": {**INT, "minimum": 0, "maximum": 3}, "b": TEXT}, "a"),
        ),
        ({"type": ["string", "null"]}, {"anyOf": [TEXT, {"enum": [None]}]}),
        ({"type": "integer", "minimum": 0.5, "exclusiveMaximum": 4}, {**INT, "minimum": 1, "maximum": 3}),
        ({"type": "integer", "maximum": -1}, {**INT, "minimum": -(2**53) + 1, "maximum": -1}),
        ({"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 20}, {"enum": [5, 10, 15, 20]}),
        ({"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 1}, {"enum": [0, 0.5, 1]}),
        (
            {"type": "number", "minimum": 0, "maximum": 100},
            {"enum": [n // 10 if n % 10 == 0 else n / 10 for n in range(1001)]},
        ),
        ({"type": "number", "multipleOf": 1}, INT),
        ({"const": {"a": [1]}}, {"enum": [{"a": [1]}]}),
        ({"enum": [1, "a", None], "type": ["integer", "null"]}, {"enum": [1, None]}),
        ({"enum": [1, 2, 3], "not": {"const": 2}}, {"enum": [1, 3]}),
        (objects(a=INT, b=INT) | {"not": {"required": ["b"]}}, closed({"a": INT})),
        ({"type": "array", "prefixItems": [INT, TEXT]}, {"type": "array", "prefixItems": [INT, TEXT]}),
        ({"type": "array", "items": INT, "maxItems": 9999.0}, {"type": "array", "items": INT, "maxItems": 2000}),
        ({"type": "array", "items": False}, {"const": []}),
        ({"type": "array", "uniqueItems": True, "maxItems": 1}, {"type": "array", "items": {}, "maxItems": 1}),
        (
            {"type": "array", "uniqueItems": True, "items": {"enum": [1, True]}, "minItems": 1},
            {
                "anyOf": [
                    {"type": "array", "prefixItems": [{"const": 1}]},
                    {"type": "array", "prefixItems": [{"const": True}]},
                    {"type": "array", "prefixItems": [{"const": 1}, {"const": True}]},
                ]
            },
        ),
        (
            objects(a=INT, b=INT) | {"dependentRequired": {"a": ["b"]}},
            {"anyOf": [closed({"b": INT}), closed({"a": INT, "b": INT}, "a", "b")]},
        ),
        (
            objects("k", k={"enum": ["x", "y"]}, n=INT)
            | {"if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["n"]}},
            {
                "anyOf": [
                    closed({"k": {"enum": ["x"]}, "n": INT}, "k", "n"),
                    closed({"k": {"enum": ["y"]}, "n": INT}, "k"),
                ]
            },
        ),
        (
            {"oneOf": [objects("t", t={"const": "a"}, n=INT), objects("t", t={"const": "b"})]},
            {"anyOf": [closed({"t": {"enum": ["a"]}, "n": INT}, "t"), closed({"t": {"enum": ["b"]}}, "t")]},
        ),
        ({"oneOf": [TEXT, INT, {"type": "null"}]}, {"anyOf": [TEXT, INT, {"enum": [None]}]}),
        (
            {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": INT},
            closed({"x": INT, "y": INT}),
        ),
        (objects(a=INT, b=INT) | {"minProperties": 2}, closed({"a": INT, "b": INT}, "a", "b")),
        (
            objects(a=INT, b=INT) | {"minProperties": 1},
            {"anyOf": [closed({"a": INT, "b": INT}, "a"), closed({"a": INT, "b": INT}, "b")]},
        ),
    ],
)
def test_schema_is_written_as_the_engine_keeps_it(schema: Any, wanted: Any) -> None:
    found = written(schema)
    assert found == wanted
    assert json.dumps(for_answer(schema)) == json.dumps(for_answer(schema))


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "number", "minimum": 0}, "minimum"),
        (objects(a={"type": "number", "maximum": 1e6, "minimum": 0}), "properties.a.minimum"),
        ({"type": "number", "multipleOf": 0.01}, "multipleOf"),
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        (objects(a={"type": "string", "pattern": "^(?=x)"}), "properties.a.pattern"),
        (objects(**{"a/b": {"type": "string", "pattern": "\\p{L}"}}), "properties.a/b.pattern"),
        ({"type": "string", "pattern": "(a)\\1"}, "pattern"),
        ({"type": "string", "pattern": "a\\b"}, "pattern"),
        ({"type": "string", "format": "regex"}, "format"),
        ({"type": "string", "pattern": "^[a-z]+$", "format": "email"}, "format"),
        ({"type": "string", "pattern": "^(?=.*[0-9]).{8,}$", "minLength": 9}, "pattern"),
        ({"type": "string", "pattern": "^(ab)+$", "minLength": 3}, "minLength"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": INT}, "contains"),
        ({"type": "array", "contains": INT, "minContains": 2}, "minContains"),
        ({"type": "object", "patternProperties": {"^a": INT}}, "patternProperties"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"type": "string", "not": {"const": "a"}}, "not"),
        ({"oneOf": [objects(a=INT), objects(b=INT)]}, "oneOf"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"if": {"pattern": "a"}, "then": INT}, "if"),
        ({"$ref": "https://example.com/x"}, "$ref"),
        ({"$ref": "#/$defs/none"}, "$ref"),
        ({"$ref": "#"}, "$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, INT]}}}, "$ref"),
        ({"$dynamicRef": "#a"}, "$dynamicRef"),
        ({"type": "strange"}, "type"),
        ({"enum": []}, "enum"),
        ({"enum": [2**70]}, "enum"),
        ({"enum": list(range(1500))}, "enum"),
        ({"allOf": [TEXT, INT]}, "allOf"),
        (False, "false"),
        (objects("a", a=False), "false"),
    ],
)
def test_schema_that_cannot_be_kept_is_refused_with_its_keyword(schema: Any, param: str) -> None:
    refusal = for_answer(schema)
    assert isinstance(refusal, Refusal)
    assert (refusal.param, refusal.status) == (param, 400)
    keyword = param.rsplit(".", 1)[-1]
    assert f"'{keyword}'" in refusal.message


def test_recursive_schema_is_kept() -> None:
    node = objects("value", value=INT, children={"type": "array", "items": {"$ref": "#/$defs/node"}})
    kept = for_answer({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert isinstance(kept, dict)
    assert len(kept["$defs"]) == 2
    names = {name for name, schema in kept["$defs"].items() if "properties" in schema}
    children = kept["$defs"][names.pop()]["properties"]["children"]
    assert children["items"]["$ref"].rsplit("/", 1)[1] in kept["$defs"]
    tree = written({"type": "object", "properties": {"next": {"$ref": "#"}}})
    assert tree["properties"]["next"]["$ref"].startswith("#/$defs/")


def test_items_that_differ_may_be_a_reference() -> None:
    schema = {
        "type": "array",
        "uniqueItems": True,
        "items": {"$ref": "#/$defs/e"},
        "$defs": {"e": {"enum": ["x", "y"]}},
    }
    assert len(written(schema)["anyOf"]) == 4


def test_definitions_of_different_schemas_have_different_names() -> None:
    """The engine shares its rules for `#/$defs/NAME` among all tools of a request."""
    first, second = (
        for_strict_tool(objects(a={"$ref": "#/$defs/x"}) | {"$defs": {"x": objects(v=kind)}}) for kind in (INT, TEXT)
    )
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert not first["$defs"].keys() & second["$defs"].keys()


def test_long_list_of_strings_becomes_one_pattern() -> None:
    found = written({"enum": [f"item-{number}" for number in range(3000)]})
    assert found["pattern"].startswith("^item\\x2D(0|1(")
    assert len(found["pattern"]) < 30_000


DAY = r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-[0-2]\d)"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("email", r"^(?!\.)(?!.*\.\.)[\w'+.-]*[\w+-]@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"),
        ("email", "@"),
        ("date", f"^{DAY}$"),
        ("date-time", rf"^{DAY}T[0-2]\d:[0-5]\d(?::[0-5]\d(?:\.\d+)?)?Z$"),
        ("uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"),
    ],
)
def test_format_beside_its_own_pattern_is_kept(name: str, pattern: str) -> None:
    """Libraries of clients (zod) write both, with look-ahead for email and without an offset for date-time."""
    assert "pattern" in written({"type": "string", "format": name, "pattern": pattern})


def test_strict_tool_keeps_descriptions_and_is_an_object() -> None:
    schema = objects("a", a={"type": "string", "description": "the city", "minLength": 2})
    kept = for_strict_tool(schema)
    assert isinstance(kept, dict)
    assert kept["properties"]["a"]["description"] == "the city"
    assert isinstance(for_strict_tool({"type": "string"}), ToolSchemaProblem)
    assert isinstance(for_strict_tool(objects(a={"type": "number", "minimum": 0})), Refusal)


KEYWORDS = [
    *("type", "properties", "required", "items", "prefixItems", "anyOf", "allOf", "oneOf", "not", "if", "then", "else"),
    *(
        "$ref",
        "$defs",
        "enum",
        "const",
        "minimum",
        "maximum",
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minItems",
    ),
    *("additionalProperties", "propertyNames", "dependentRequired", "multipleOf", "a", "$id", "contains"),
]
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 5),
        st.sampled_from(["object", "string", "integer", "array", "#", "#/$defs/a", "#/properties/a", "^a+$", "(", "a"]),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=5)),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYWORDS), values, max_size=6))
def test_any_json_is_written_or_refused(schema: dict[str, Any]) -> None:
    for kept in (for_answer(schema), for_strict_tool(schema)):
        assert isinstance(kept, Refusal | ToolSchemaProblem) or json.dumps(kept)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"anyOf": [objects(**{f"p{n}": INT}) for n in range(20)]}] * 8},
        {"$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 3} for n in range(40)}, "$ref": "#/$defs/d0"},
        {
            "$defs": {"a": objects(x={"$ref": "#/$defs/a"}), "b": objects(x={"$ref": "#/$defs/b"})},
            "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        },
        {"allOf": [{"enum": list(range(n, n + 5000))} for n in range(3)]},
        {"const": "a" * 5000, "pattern": "^(a*)*(a*)*b$"},
        {"const": "a" * 50, "pattern": "^((((a?){2000}){2000}){2000})b$"},
        {"anyOf": [{"pattern": f"^{n}({'[^a]' * 900})$"} for n in range(60)]},
    ],
)
def test_combinations_are_bounded(schema: Any) -> None:
    assert isinstance(for_answer(schema), Refusal)
