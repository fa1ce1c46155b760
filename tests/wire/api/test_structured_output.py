"""Schemas in the fields of each API: normalised, loosened, or refused with the path of the keyword."""

from __future__ import annotations

from typing import Any

import pytest

from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api

PRICE = {"type": "object", "properties": {"price": {"type": "number", "minimum": 0}}}
CODE = {"type": "object", "properties": {"code": {"type": "string", "pattern": "\\d"}}}
TREE = {"type": "object", "properties": {"next": {"$ref": "#"}}}
SAID = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"model": "m", "messages": SAID}
MESSAGES: dict[str, Any] = {**CHAT, "max_tokens": 9}
RESPONSES: dict[str, Any] = {"model": "m", "input": "Hi"}
COMPLETIONS: dict[str, Any] = {"model": "m", "prompt": "Hi"}


def named(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def flat(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "name": "a", "schema": schema}


def fields(schema: Any) -> list[tuple[Api, dict[str, Any], str]]:
    """Each place for the schema of an answer, and the parameter's name."""
    return [
        (Api.CHAT, {**CHAT, "response_format": named(schema)}, "response_format.json_schema.schema"),
        (Api.CHAT, {**CHAT, "response_format": {"type": "json_object", "schema": schema}}, "response_format.schema"),
        (Api.CHAT, {**CHAT, "json_schema": schema}, "json_schema"),
        (Api.COMPLETIONS, {**COMPLETIONS, "response_format": named(schema)}, "response_format.json_schema.schema"),
        (Api.COMPLETIONS, {**COMPLETIONS, "json_schema": schema}, "json_schema"),
        (Api.RESPONSES, {**RESPONSES, "text": {"format": flat(schema)}}, "text.format.schema"),
        (Api.MESSAGES, {**MESSAGES, "output_format": flat(schema)}, "output_format.schema"),
        (Api.MESSAGES, {**MESSAGES, "output_config": {"format": flat(schema)}}, "output_config.format.schema"),
    ]


@pytest.mark.parametrize(("api", "body", "param"), fields(PRICE))
def test_answer_schema_is_refused_with_the_path_of_the_keyword(api: Api, body: dict[str, Any], param: str) -> None:
    refusal = prepare(api, body)
    assert isinstance(refusal, Refusal)
    assert refusal.param == f"{param}.properties.price.minimum"


@pytest.mark.parametrize(("api", "body", "param"), fields(CODE))
def test_answer_schema_is_normalised(api: Api, body: dict[str, Any], param: str) -> None:
    prepared = prepare(api, body)
    assert isinstance(prepared, Prepared)
    assert prepared.body is not None
    schema = prepared.body["json_schema"]
    assert schema["$ref"].startswith("#/$defs/")
    [written] = schema["$defs"].values()
    assert written["properties"]["code"]["pattern"].endswith("*$")


def tools(schema: Any, **more: Any) -> list[tuple[Api, dict[str, Any], str]]:
    function = {"name": "f", "parameters": schema, **more}
    return [
        (Api.CHAT, {**CHAT, "tools": [{"type": "function", "function": function}]}, "tools[0].function.parameters"),
        (Api.RESPONSES, {**RESPONSES, "tools": [{"type": "function", **function}]}, "tools[0].parameters"),
        (Api.MESSAGES, {**MESSAGES, "tools": [{"name": "f", "input_schema": schema, **more}]}, "tools[0].input_schema"),
    ]


def parameters(prepared: Any) -> Any:
    [tool] = prepared.body["tools"]
    function = tool.get("function", tool)
    return function.get("parameters", function.get("input_schema"))


@pytest.mark.parametrize(("api", "body", "param"), tools(TREE))
def test_recursive_tool_is_loosened(api: Api, body: dict[str, Any], param: str) -> None:
    assert parameters(prepare(api, body))["properties"] == {"next": {}}


@pytest.mark.parametrize(("api", "body", "param"), tools(PRICE, strict=True))
def test_strict_tool_is_refused_with_the_path_of_the_keyword(api: Api, body: dict[str, Any], param: str) -> None:
    refusal = prepare(api, body)
    assert isinstance(refusal, Refusal)
    assert refusal.param == f"{param}.properties.price.minimum"


@pytest.mark.parametrize(("api", "body", "param"), tools(CODE, strict=True))
def test_strict_tool_is_written_exactly(api: Api, body: dict[str, Any], param: str) -> None:
    found = parameters(prepare(api, body))
    assert found["additionalProperties"] is False
    assert found["properties"]["code"]["pattern"].endswith("*$")
