"""The tool choice of each API, alike: kept, or refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest
from asking import prepare

from meshllm.wire.api.messages_request import CHAT_PATH
from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
B = {"name": "b"}
USER = [{"role": "user", "content": "hi"}]


def body(api: Api, choice: Any, names: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    tools: list[dict[str, Any]]
    if api is Api.CHAT:
        tools = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in names]
    elif api is Api.RESPONSES:
        tools = [{"type": "function", "name": name, "parameters": CITY} for name in names]
    else:
        tools = [{"name": name, "input_schema": CITY} for name in names]
    asked = {"input": "hi"} if api is Api.RESPONSES else {"messages": USER}
    return {"model": "m", **asked, "tools": tools, "tool_choice": choice}


def prepared(api: Api, choice: Any, names: tuple[str, ...] = ("a", "b")) -> dict[str, Any]:
    given = body(api, choice, names)
    found = prepare(api, given)
    assert isinstance(found, Prepared), found
    return dict(found.body or given)


def named(schema: dict[str, Any]) -> list[str]:
    choices = schema.get("anyOf", [schema])
    return [choice["properties"]["name"]["const"] for choice in choices]


FORCED = [
    (Api.CHAT, "required", ["a", "b"]),
    (Api.CHAT, {"type": "function", "function": {"name": "b"}}, ["b"]),
    (
        Api.CHAT,
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": B}]},
        },
        ["b"],
    ),
    (Api.RESPONSES, "required", ["a", "b"]),
    (Api.RESPONSES, {"type": "function", "name": "b"}, ["b"]),
    (Api.RESPONSES, {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "a"}]}, ["a"]),
    (Api.MESSAGES, {"type": "any"}, ["a", "b"]),
    (Api.MESSAGES, {"type": "tool", "name": "b"}, ["b"]),
]


@pytest.mark.parametrize(("api", "choice", "names"), FORCED)
def test_a_forced_call_is_a_schema_of_the_answer(api: Api, choice: Any, names: list[str]) -> None:
    found = prepare(api, body(api, choice))
    assert isinstance(found, Prepared)
    assert found.translator is not None
    assert found.path == (CHAT_PATH if api is Api.MESSAGES else "")
    assert found.body is not None
    assert named(found.body["json_schema"]) == names
    # The template renders the tools, and the engine's own grammar of calls, which allows free text, is off.
    assert len(found.body["tools"]) == len(names)
    assert found.body["tool_choice"] == "none"


@pytest.mark.parametrize(
    ("api", "choice"),
    [
        (Api.CHAT, "auto"),
        (Api.CHAT, None),
        (Api.RESPONSES, "auto"),
        (Api.MESSAGES, {"type": "auto"}),
        (Api.MESSAGES, None),
    ],
)
def test_auto_leaves_the_tools_as_they_are(api: Api, choice: Any) -> None:
    kept = prepared(api, choice)
    assert kept["tools"] == body(api, choice)["tools"]
    assert "json_schema" not in kept


@pytest.mark.parametrize(
    ("api", "choice"), [(Api.CHAT, "none"), (Api.RESPONSES, "none"), (Api.MESSAGES, {"type": "none"})]
)
def test_none_offers_no_tool(api: Api, choice: Any) -> None:
    kept = prepared(api, choice)
    assert "tools" not in kept
    assert "tool_choice" not in kept


def test_allowed_tools_in_auto_mode_are_the_only_ones_offered() -> None:
    chat = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "b"}}]}
    kept = prepared(Api.CHAT, {"type": "allowed_tools", "allowed_tools": chat})
    assert [tool["function"]["name"] for tool in kept["tools"]] == ["b"]
    kept = prepared(
        Api.RESPONSES, {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "a"}]}
    )
    assert [tool["name"] for tool in kept["tools"]] == ["a"]
    assert kept["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("api", "choice"),
    [
        (Api.CHAT, {"type": "function", "function": {"name": "unknown"}}),
        (Api.CHAT, {"type": "function", "function": {}}),
        (Api.CHAT, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
        (Api.CHAT, "any"),
        (Api.CHAT, 7),
        (Api.RESPONSES, {"type": "function", "name": "unknown"}),
        (Api.RESPONSES, {"type": "web_search_preview"}),
        (Api.RESPONSES, "always"),
        (Api.MESSAGES, {"type": "tool", "name": "unknown"}),
        (Api.MESSAGES, {"type": "tool"}),
        (Api.MESSAGES, "any"),
    ],
)
def test_a_choice_that_cannot_be_kept_is_refused_by_name(api: Api, choice: Any) -> None:
    refusal = prepare(api, body(api, choice))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert str(refusal.param).startswith("tool_choice")


@pytest.mark.parametrize(
    ("api", "choice"), [(Api.CHAT, "required"), (Api.RESPONSES, "required"), (Api.MESSAGES, {"type": "any"})]
)
def test_a_required_call_needs_tools(api: Api, choice: Any) -> None:
    refusal = prepare(api, body(api, choice, ()))
    assert isinstance(refusal, Refusal)
    assert refusal.param == "tool_choice"


def test_one_call_at_a_time_of_messages_is_kept_through_chat() -> None:
    found = prepare(Api.MESSAGES, body(Api.MESSAGES, {"type": "auto", "disable_parallel_tool_use": True}))
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert (found.path, found.body["parallel_tool_calls"]) == (CHAT_PATH, False)
    assert "json_schema" not in found.body


@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES, Api.MESSAGES])
def test_a_forced_call_cannot_continue_a_prefill(api: Api) -> None:
    given = body(api, {"type": "any"} if api is Api.MESSAGES else "required")
    said = {"role": "assistant", "content": "I"}
    given |= {"input": [*USER, said]} if api is Api.RESPONSES else {"messages": [*USER, said]}
    refusal = prepare(api, given)
    assert isinstance(refusal, Refusal)
    assert refusal.param in ("messages[1]", "input[1]")


@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES, Api.MESSAGES])
def test_tools_beside_a_schema_are_a_choice_of_both(api: Api) -> None:
    given = body(api, {"type": "auto"} if api is Api.MESSAGES else "auto")
    given |= {
        Api.CHAT: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}},
        Api.RESPONSES: {"text": {"format": {"type": "json_schema", "name": "x", "schema": CITY}}},
        Api.MESSAGES: {"output_config": {"format": {"type": "json_schema", "schema": CITY}}},
    }[api]
    found = prepare(api, given)
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert [next(iter(choice["properties"])) for choice in found.body["json_schema"]["anyOf"]] == [
        "name",
        "name",
        "answer",
    ]


@pytest.mark.parametrize(
    ("api", "param"), [(Api.CHAT, "function.parameters"), (Api.RESPONSES, "parameters"), (Api.MESSAGES, "input_schema")]
)
def test_a_strict_tool_that_cannot_be_kept_is_refused_by_name(api: Api, param: str) -> None:
    given = body(api, None)
    tool = given["tools"][1]
    function = tool["function"] if api is Api.CHAT else tool
    odd = {"type": "object", "unevaluatedItems": 7, "not": {"$ref": "#"}}
    function["input_schema" if api is Api.MESSAGES else "parameters"] = odd
    assert isinstance(prepare(api, given), Prepared)
    function["strict"] = True
    refusal = prepare(api, given)
    assert isinstance(refusal, Refusal)
    assert str(refusal.param).startswith(f"tools[1].{param}")
