"""Schemas against a real engine: each answer validates, at a high temperature, or the request names the keyword.

`scripts/schemas` runs the same with the public suite of JSON Schema, and a validator as judge.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.daemons import MODEL, Daemon, daemon

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TIMEOUT_SECONDS = 300.0
SEEDS = (1, 2)
# Enough for most answers; one that is cut does not count, but one of the seeds must end.
MAX_TOKENS = 100
HOT = 1.5


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("schemas") / "home", "--model", MODEL, "--ctx-size", "4096") as started:
        yield started.wait_until_serving()


def ask(node: Daemon, **fields: Any) -> tuple[int, Any]:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Invent one."}], **fields}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{node.base_url}/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def answers(node: Daemon, schema: Any) -> list[Any]:
    """The values of the answers that were not cut."""
    wanted = {"type": "json_schema", "json_schema": {"name": "made", "schema": schema, "strict": True}}
    found = []
    for seed in SEEDS:
        status, body = ask(node, response_format=wanted, seed=seed, temperature=HOT, max_tokens=MAX_TOKENS)
        assert status == 200, body
        choice = body["choices"][0]
        if choice["finish_reason"] == "stop":
            found.append(json.loads(choice["message"]["content"]))
    return found


def objects(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


@dataclass(frozen=True)
class Case:
    """A schema, and whether a value is valid."""

    name: str
    schema: Any
    valid: Callable[[Any], bool]


def matching(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.search(pattern, value) is not None


TREE = objects(
    "value", value={"enum": [1, 2]}, children={"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}
)


def is_tree(value: Any) -> bool:
    return (
        value["value"] in (1, 2) and len(value.get("children", [])) < 2 and all(map(is_tree, value.get("children", [])))
    )


CASES = [
    Case("digits", {"type": "string", "pattern": r"^\d{3}-\d{4}$"}, matching(r"^[0-9]{3}-[0-9]{4}\Z")),
    Case("no anchors", {"type": "string", "pattern": r"\d", "maxLength": 12}, matching("[0-9]")),
    Case("one anchor each", {"type": "string", "pattern": "^a|b$", "maxLength": 9}, matching(r"^a|b\Z")),
    Case("quotes", {"type": "string", "pattern": '^["\\\\]{3}$'}, matching(r'^["\\]{3}\Z')),
    Case("dot", {"type": "string", "pattern": "^.{4}$"}, lambda value: len(value) == 4 and "\n" not in value),
    Case("negated class", {"type": "string", "pattern": "^[^a-z]{5}$"}, matching(r"^[^a-z]{5}\Z")),
    Case("pattern and length", {"pattern": "^[a-z]+$", "maxLength": 5, "minLength": 2}, matching(r"^[a-z]{2,5}\Z")),
    Case("length", {"type": "string", "minLength": 3, "maxLength": 6}, lambda value: 3 <= len(value) <= 6),
    Case("date", {"type": "string", "format": "date"}, matching(r"^\d{4}-\d\d-\d\d\Z")),
    Case("email", {"type": "string", "format": "email", "maxLength": 40}, matching(r"^[^@ ]+@[^@ ]+\.[a-z]+\Z")),
    Case("ipv4", {"type": "string", "format": "ipv4"}, lambda value: all(int(part) < 256 for part in value.split("."))),
    Case("integer below zero", {"type": "integer", "maximum": -5, "minimum": -99}, lambda value: -99 <= value <= -5),
    Case("exclusive", {"type": "integer", "exclusiveMinimum": 6, "exclusiveMaximum": 9}, lambda value: value in (7, 8)),
    Case("fraction", {"type": "number", "minimum": 0, "maximum": 1}, lambda value: 0 <= value <= 1),
    Case("step", {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 99}, lambda value: value % 7 == 0),
    Case(
        "required beside properties",
        objects(a={"enum": [1]}, b={"enum": [2]}) | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        lambda value: ("a" in value or "b" in value) and value.get("a", 1) == 1 and value.get("b", 2) == 2,
    ),
    Case(
        "if and then",
        objects("k", k={"enum": ["x", "y"]}, n={"type": "integer", "minimum": 0, "maximum": 9})
        | {
            "if": {"properties": {"k": {"const": "x"}}},
            "then": {"required": ["n"]},
            "else": {"not": {"required": ["n"]}},
        },
        lambda value: (value["k"] == "x") is ("n" in value),
    ),
    Case(
        "allOf",
        {"allOf": [objects("a", a={"type": "integer"}), {"properties": {"a": {"minimum": 3, "maximum": 5}}}]},
        lambda value: 3 <= value["a"] <= 5,
    ),
    Case(
        "optional stays optional",
        {"allOf": [objects("a", a={"enum": [1]}, b={"type": "null"})]},
        lambda value: value["a"] == 1 and value.get("b") is None,
    ),
    Case("recursion", {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}, is_tree),
    Case(
        "names like rules of the engine",
        objects("decimal part", "n", **{"decimal part": {"enum": ["x"]}, "n": {"type": "number"}}),
        lambda value: isinstance(value["n"], float | int),
    ),
    Case("tuple", {"type": "array", "prefixItems": [{"enum": ["a"]}, {"enum": [1]}]}, lambda value: value == ["a", 1]),
    Case(
        "items",
        {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3},
        lambda value: 2 <= len(value) <= 3,
    ),
    Case(
        "open names",
        objects("a", **{"a": {"enum": [1]}, "b]": {"enum": [2]}}) | {"additionalProperties": True},
        lambda value: value["a"] == 1,
    ),
    Case("many", {"enum": [f"part-{number}" for number in range(1500)]}, matching(r"^part-\d+\Z")),
    Case("not", {"enum": [1, 2, 3], "not": {"enum": [1, 3]}}, lambda value: value == 2),
    Case(
        "discriminated",
        {"oneOf": [objects("t", t={"const": "a"}), objects("t", t={"const": "b"})]},
        lambda value: value["t"] in ("a", "b"),
    ),
    Case("null or text", {"type": ["string", "null"], "maxLength": 4}, lambda value: value is None or len(value) < 5),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answer_validates(node: Daemon, case: Case) -> None:
    found = answers(node, case.schema)
    assert found, "every answer was cut"
    assert [value for value in found if not case.valid(value)] == []


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        (objects(price={"type": "number", "minimum": 0}), "minimum"),
        (objects(a={"type": "string", "pattern": "^(?=.*x).+$"}), "pattern"),
        (objects(a={"type": "array", "uniqueItems": True, "items": {}}), "uniqueItems"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patternProperties"),
        ({"oneOf": [objects(a={}), objects(b={})]}, "oneOf"),
        ({"$ref": "https://example.com/schema"}, "$ref"),
    ],
)
def test_schema_that_cannot_be_kept_is_a_400(node: Daemon, schema: Any, keyword: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "made", "schema": schema, "strict": True}}
    status, body = ask(node, response_format=wanted, max_tokens=5)
    assert status == 400
    assert f"'{keyword}'" in body["error"]["message"]
    assert body["error"]["param"].endswith(keyword)


TOOLS: list[dict[str, Any]] = [
    objects(node={"$ref": "#/$defs/n"}) | {"$defs": {"n": objects(v={"type": "string"}, next={"$ref": "#/$defs/n"})}},
    objects(a={"$ref": "#"}),
    objects(a={"$ref": "#/$defs/Item"}) | {"$defs": {"Item": objects(x={"type": "integer"})}},
    objects(a={"$ref": "#/$defs/Item"}) | {"$defs": {"Item": objects(y={"type": "string"})}},
    objects(a={"$ref": "https://example.com/schema"}),
    objects(a={"type": "string", "pattern": "("}, b={"type": "strange"}, c=True, d={"enum": []}),
    objects(a={"type": "string", "pattern": "^.*$"}, **{"x]": {"type": "string"}}) | {"additionalProperties": True},
    objects(a={"type": "string"}, b={"type": "string"}) | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"anyOf": [objects(a={}), objects(b={})]},
    {"type": "object", "properties": None, "required": None},
]


@pytest.mark.parametrize("parameters", [*TOOLS, None], ids=str)
def test_no_schema_of_a_tool_fails_the_request(node: Daemon, parameters: Any) -> None:
    """Each alone, and all together (None)."""
    schemas = TOOLS if parameters is None else [parameters]
    tools = [
        {"type": "function", "function": {"name": f"tool{index}", "description": "does", "parameters": schema}}
        for index, schema in enumerate(schemas)
    ]
    status, body = ask(node, tools=tools, max_tokens=3)
    assert status == 200, body
