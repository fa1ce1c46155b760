"""Fields that every API refuses alike, with the field's name: numbers beyond 64 bits, tools with broken parameters."""

from __future__ import annotations

from typing import Any

import pytest
from asking import prepare

from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api

SAID = [{"role": "user", "content": "a"}]
ASKED: dict[Api, dict[str, Any]] = {
    Api.CHAT: {"messages": SAID},
    Api.COMPLETIONS: {"prompt": "a"},
    Api.RESPONSES: {"input": "a"},
    Api.MESSAGES: {"messages": SAID},
}
LENGTHS = {Api.RESPONSES: "max_output_tokens"}
APIS = pytest.mark.parametrize("api", ASKED)
WITH_TOOLS = pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES, Api.MESSAGES])


def asked(api: Api, **fields: Any) -> Prepared | Refusal:
    return prepare(api, {"model": "m", **ASKED[api], **fields})


def refused(api: Api, **fields: Any) -> Refusal:
    found = asked(api, **fields)
    assert isinstance(found, Refusal), found
    assert found.status == 400
    return found


def tool(api: Api, schema: Any, **more: Any) -> dict[str, Any]:
    """A tool "weather" of that API with these parameters."""
    if api is Api.MESSAGES:
        return {"name": "weather", "input_schema": schema, **more}
    function = {"name": "weather", "parameters": schema, **more}
    return {"type": "function", "function": function} if api is Api.CHAT else {"type": "function", **function}


def place(api: Api) -> str:
    """The field with the parameters of the first tool."""
    fields = {Api.CHAT: "function.parameters", Api.RESPONSES: "parameters", Api.MESSAGES: "input_schema"}
    return f"tools[0].{fields[api]}"


HUGE = pytest.mark.parametrize(
    "number", [1 << 64, 10**400, -(10**300), 1e30, -1e300], ids=["2^64", "400", "-300", "f", "-f"]
)


@APIS
@HUGE
@pytest.mark.parametrize("field", ["n", "top_k", "seed", "temperature", "top_p", "repeat_last_n", "frequency_penalty"])
def test_number_beyond_64_bits_is_too_large(api: Api, field: str, number: float) -> None:
    if field == "n" and api in (Api.RESPONSES, Api.MESSAGES):
        assert refused(api, n=number).param == "n"  # no such field there
        return
    found = refused(api, **{field: number})
    assert (found.param, "too large" in found.message) == (field, True)


@APIS
@HUGE
def test_length_beyond_64_bits_is_too_large(api: Api, number: float) -> None:
    field = LENGTHS.get(api, "max_tokens")
    found = refused(api, **{field: number})
    assert found.param == field
    assert "too large" in found.message


@HUGE
def test_numbers_of_one_api_alone_are_too_large(number: float) -> None:
    thinking = {"type": "enabled", "budget_tokens": number}
    found = [
        (refused(Api.MESSAGES, thinking=thinking), "thinking.budget_tokens"),
        (refused(Api.COMPLETIONS, logprobs=number), "logprobs"),
    ]
    embedding = prepare(Api.EMBEDDINGS, {"model": "m", "input": "a", "dimensions": number})
    assert isinstance(embedding, Refusal)
    for refusal, field in [*found, (embedding, "dimensions")]:
        assert (refusal.param, "too large" in refusal.message) == (field, True)


@APIS
def test_length_of_minus_one_is_no_limit_as_in_llama_cpp_and_less_is_refused(api: Api) -> None:
    field = LENGTHS.get(api, "max_tokens")
    assert isinstance(asked(api, **{field: -1}), Prepared)
    found = refused(api, **{field: -2})
    assert found.param == field
    assert "-1 for no limit" in found.message


@APIS
def test_bias_that_is_a_text_is_refused_by_its_token(api: Api) -> None:
    for bias in ("5", "-100", "none"):
        found = refused(api, logit_bias={"17": 1, "42": bias})
        assert found.param == "logit_bias.42"
        assert repr(bias) in found.message
    assert refused(api, logit_bias=[["x", "1"]]).param == "logit_bias.x"
    assert refused(api, logit_bias={"42": 1e30}).param == "logit_bias.42"


@WITH_TOOLS
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("schema", "field", "said"),
    [
        ({"type": "string"}, ".type", "'string'"),
        ({"type": ["array", "null"]}, ".type", "array"),
        ({"type": 7}, ".type", "7"),
        ({"type": "object", "properties": []}, ".properties", "object"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}}, ".properties.a.$ref", "'#/$defs/gone'"),
        ({"$ref": "#/definitions/x", "definitions": {}}, ".$ref", "#/definitions/x"),
        (
            {"properties": {"a": {"items": {"anyOf": [{}, {"$ref": "#no"}]}}}},
            ".properties.a.items.anyOf[1].$ref",
            "#no",
        ),
    ],
)
def test_broken_parameters_of_a_tool_are_refused(
    api: Api, schema: dict[str, Any], field: str, said: str, strict: bool
) -> None:
    found = refused(api, tools=[tool(api, schema, **({"strict": True} if strict else {}))])
    assert found.param == place(api) + field
    assert "of the tool 'weather'" in found.message
    assert said in found.message


@WITH_TOOLS
@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "OBJECT"},
        {"type": ["object", "null"]},
        {"properties": {"a": {"type": "string", "default": {"$ref": "#/gone"}}}},
        {"properties": {"$ref": {"type": "string"}}},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}},
        {"properties": {"a": {"$ref": "https://other.example/schema.json"}}},
    ],
)
def test_other_parameters_of_a_tool_are_kept_or_loosened(api: Api, schema: dict[str, Any]) -> None:
    assert isinstance(asked(api, tools=[tool(api, schema)]), Prepared)


@pytest.mark.parametrize("fields", [{}, {"input_schema": None}, {"type": "custom", "input_schema": None}])
def test_anthropic_tool_without_a_schema_is_refused(fields: dict[str, Any]) -> None:
    found = refused(Api.MESSAGES, tools=[{"name": "weather", **fields}])
    assert (found.param, "'weather'" in found.message) == ("tools[0].input_schema", True)


@WITH_TOOLS
def test_errors_of_a_tool_name_it(api: Api) -> None:
    good = tool(api, {})
    for fields, param in (({"description": 7}, "description"), ({"strict": "yes"}, "strict")):
        found = refused(api, tools=[good, tool(api, {}, **fields)])
        assert found.param is not None
        assert found.param.startswith("tools[1].")
        assert found.param.endswith(param)
        assert "of the tool 'weather'" in found.message
