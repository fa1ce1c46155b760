"""Schemas of tools: unchanged where the engine takes them, else loosened; none fails the request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from meshllm.wire.api.refusal import ToolSchemaProblem
from meshllm.wire.api.schemas import for_tool
from tests.wire.api.test_schemas import INT, TEXT, objects, values

ANYTHING: dict[str, Any] = {}


@pytest.mark.parametrize(
    "schema",
    [
        objects("city", city={"type": "string", "description": "where"}, days={"type": "integer", "minimum": 1}),
        objects(a={"type": ["string", "null"]}, b={"enum": ["x", "y"]}, c={"type": "array", "items": TEXT}),
        objects(a={"anyOf": [TEXT, INT]}, b={"type": "number", "minimum": 0}, c={"type": "array", "uniqueItems": True}),
        objects(a={"type": "string", "pattern": "^[a-z]{2,3}-[A-Z]+$"}) | {"additionalProperties": False},
        {"type": "object", "additionalProperties": INT},
    ],
)
def test_schema_that_the_engine_takes_is_not_copied(schema: dict[str, Any]) -> None:
    assert for_tool(schema) is schema


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (None, {"type": "object", "properties": {}}),
        ({"properties": {"a": INT}}, objects(a=INT) | {"required": None}),
        (objects(a={"$ref": "#"}), objects(a=ANYTHING)),
        (objects(a={"$ref": "#/$defs/n"}) | {"$defs": {"n": objects(v=INT)}}, objects(a=objects(v=INT))),
        (
            objects(a={"$ref": "#/$defs/n", "description": "tree"})
            | {"$defs": {"n": objects(v=INT, next={"$ref": "#/$defs/n"})}},
            objects(a=objects(v=INT, next=ANYTHING) | {"description": "tree"}),
        ),
        (objects(a={"$ref": "https://example.com"}, b={"$ref": "other.json"}), objects(a=ANYTHING, b=ANYTHING)),
        (objects(a=True, b=False, c=7), objects(a=ANYTHING, c=ANYTHING)),
        (objects(a={"type": "int"}, b={"type": "file"}, c={"type": []}), objects(a=INT, b=ANYTHING, c=ANYTHING)),
        (objects(a={"enum": []}, b={"minLength": -1}, c={"minimum": "1"}), objects(a=ANYTHING, b=ANYTHING, c=ANYTHING)),
        (
            objects(a={"type": "string", "pattern": "^\\d+$", "description": "id"}),
            objects(a={"type": "string", "pattern": "^([0-9])+$", "description": "id (Pattern: ^\\d+$)"}),
        ),
        (
            objects(a={"type": "string", "pattern": "^(?=x)$"}, b={"pattern": "("}),
            objects(a={"type": "string", "description": "Pattern: ^(?=x)$"}, b={"description": "Pattern: ("}),
        ),
        (objects(a=INT, b=INT) | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, objects(a=INT, b=INT)),
        (
            objects(a=INT) | {"oneOf": [objects("a", b=INT), objects("a", c=INT)]},
            objects("a", a=INT, b=INT, c=INT),
        ),
        ({"anyOf": [objects("a", a=INT), objects("a", a=INT, b=TEXT)]}, objects("a", a=INT, b=TEXT)),
        ({"allOf": [objects("a", a=INT), objects(b=TEXT)]}, objects("a", b=TEXT, a=INT)),
        (objects(a=INT) | {"additionalProperties": True}, objects(a=INT)),
        (objects("b", a=INT), objects("b", a=INT, b=ANYTHING)),
        (
            objects(a={"type": "array", "prefixItems": [INT], "items": False}),
            objects(a={"type": "array", "prefixItems": [INT]}),
        ),
        (objects(a={"type": "integer", "maximum": -5}), objects(a={**INT, "maximum": -5, "minimum": -(2**53) + 1})),
    ],
)
def test_schema_is_loosened(schema: Any, wanted: dict[str, Any]) -> None:
    found = for_tool(schema)
    if wanted.get("required") is None:
        wanted = {key: value for key, value in wanted.items() if key != "required"}
    assert found == wanted


def test_written_out_references_are_bounded() -> None:
    definitions = {f"d{n}": objects(**{f"p{k}": {"$ref": f"#/$defs/d{n + 1}"} for k in range(9)}) for n in range(30)}
    definitions["d30"] = INT
    found = for_tool({"$ref": "#/$defs/d0", "$defs": definitions})
    assert len(json.dumps(found)) < 200_000


def refused(schema: Any) -> str:
    """Why the engine's converter (common/json-schema.cpp) throws for a schema; empty if it does not."""
    if not isinstance(schema, dict):
        return "not an object"
    if "$ref" in schema:
        return "a reference"
    for keyword in ("oneOf", "anyOf"):
        if keyword in schema:
            alternatives = schema[keyword]
            if not isinstance(alternatives, list) or not alternatives:
                return keyword
            return next(filter(None, map(refused, alternatives)), "")
    kinds = schema.get("type", "object")
    if any(kind not in TYPES for kind in (kinds if isinstance(kinds, list) else [kinds])) or kinds == []:
        return "type"
    if "enum" in schema and (not isinstance(schema["enum"], list) or not schema["enum"]):
        return "enum"
    if any(not isinstance(schema.get(key, 0), int) or schema.get(key, 0) < 0 for key in COUNTS):
        return "a count"
    if any(isinstance(schema.get(key, 0), bool | str | None | list | dict) for key in BOUNDS):
        return "a bound"
    if not isinstance(schema.get("pattern", ""), str) or not isinstance(schema.get("format", ""), str):
        return "pattern or format"
    if not isinstance(schema.get("additionalProperties", {}), bool | dict):
        return "additionalProperties"
    places = schema.get("items", schema.get("prefixItems", []))
    parts = [*schema.get("properties", {}).values(), *(places if isinstance(places, list) else [places])]
    parts += [part for part in [schema.get("additionalProperties")] if isinstance(part, dict)]
    return next(filter(None, map(refused, parts)), "")


TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


@settings(max_examples=150, deadline=None)
@given(values)
def test_engine_accepts_any_schema_of_a_tool(schema: Any) -> None:
    found = for_tool(schema)
    if isinstance(found, ToolSchemaProblem):
        assert isinstance(schema, dict)
        return
    assert found["type"] == "object"
    assert not refused(found)
    assert "allOf" not in found
