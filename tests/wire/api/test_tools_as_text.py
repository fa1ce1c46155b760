"""Tools, calls and results as texts, for templates that leave them out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshllm.core.serving.template_traits import ANY_TEMPLATE
from meshllm.wire.api.conversation import shape, shape_anthropic, shape_body, shape_responses
from meshllm.wire.api.refusal import RequestRefused
from meshllm.wire.api.routes import Api
from meshllm.wire.api.tools_as_text import short_id

NO_TOOLS = replace(ANY_TEMPLATE, tools=False)
NO_CALLS = replace(ANY_TEMPLATE, calls=False)
SHORT_IDS = replace(ANY_TEMPLATE, long_call_ids=False)
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
TOLD = (
    "These functions are available, each described as JSON on a line of its own:\n<tools>\n"
    '{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}\n</tools>'
)
ID = "call_0123456789"
MESSAGES = [
    {"role": "user", "content": "Q"},
    {
        "role": "assistant",
        "content": "A",
        "tool_calls": [{"id": ID, "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
    },
    {"role": "tool", "tool_call_id": ID, "content": "T"},
]
CALL_TEXT = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
RESULT_TEXT = "<tool_response>\nT\n</tool_response>"


def test_tools_are_described_in_the_system_text_of_each_api() -> None:
    chat = {"messages": [{"role": "system", "content": "S"}, *MESSAGES[:1]], "tools": [TOOL]}
    shaped = shape_body(Api.CHAT, chat, NO_TOOLS)
    assert shaped == {**chat, "messages": [chat["messages"][0], {"role": "system", "content": TOLD}, *MESSAGES[:1]]}
    one = shape_body(Api.CHAT, chat, replace(NO_TOOLS, systems_first=False))
    assert one == {**chat, "messages": [{"role": "system", "content": f"S\n\n{TOLD}"}, *MESSAGES[:1]]}
    flat = {"instructions": "S", "input": "Q", "tools": [{"type": "function", **FUNCTION}]}
    told = shape_body(Api.RESPONSES, flat, NO_TOOLS)
    assert told is not None
    assert told["instructions"].startswith("S\n\nThese functions")
    for system in (None, "S", [{"type": "text", "text": "S"}]):
        body = {"system": system, "messages": MESSAGES[:1], "tools": [{"name": "f", "input_schema": {}}]}
        for api in (Api.MESSAGES, Api.COUNT_TOKENS):
            told = shape_body(api, body, NO_TOOLS)
            assert told is not None
            assert '{"name":"f","input_schema":{}}' in str(told["system"])
            assert told["tools"] == body["tools"]


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "f"}}, {"type": "any"}, {"type": "tool", "name": "f"}],
)
def test_a_required_call_is_refused_where_nothing_enforces_it(choice: Any) -> None:
    body = {"messages": MESSAGES[:1], "tools": [TOOL], "tool_choice": choice}
    with pytest.raises(RequestRefused) as refused:
        shape_body(Api.CHAT, body, NO_TOOLS)
    assert refused.value.refusal.param == "tool_choice"
    assert shape_body(Api.CHAT, body, ANY_TEMPLATE) is None


@pytest.mark.parametrize("body", [{"tools": []}, {"tools": None}, {}, {"tools": [TOOL], "tool_choice": "none"}])
def test_a_request_without_tools_is_not_changed(body: dict[str, Any]) -> None:
    assert shape_body(Api.CHAT, {"messages": MESSAGES[:1], **body}, NO_TOOLS) is None


def test_calls_and_results_as_texts() -> None:
    assert shape(MESSAGES, NO_CALLS) == [
        MESSAGES[0],
        {"role": "assistant", "content": f"A\n{CALL_TEXT}"},
        {"role": "user", "content": RESULT_TEXT},
    ]
    use = [{"type": "text", "text": "A"}, {"type": "tool_use", "id": ID, "name": "f", "input": {"x": 1}}]
    results = [{"type": "tool_result", "tool_use_id": ID, "content": "T"} for _ in range(2)]
    _, shaped = shape_anthropic(
        None, [{"role": "assistant", "content": use}, {"role": "user", "content": results}], NO_CALLS
    )
    assert shaped[0]["content"] == [use[0], {"type": "text", "text": CALL_TEXT.replace('"x": 1', '"x":1')}]
    assert shaped[1] == {"role": "user", "content": f"{RESULT_TEXT}\n{RESULT_TEXT}"}
    items = [
        {"type": "function_call", "call_id": ID, "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": ID, "output": "T"},
    ]
    _, shaped = shape_responses(None, items, NO_CALLS)
    part = {"type": "output_text", "text": CALL_TEXT}
    assert shaped == [
        {"type": "message", "role": "assistant", "content": [part]},
        {"role": "user", "content": RESULT_TEXT},
    ]


def test_results_with_pictures_stay_parts() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    [_, _, result] = shape([*MESSAGES[:2], {**MESSAGES[2], "content": [picture]}], NO_CALLS)
    assert result["content"][1] == picture


def test_short_identifiers_pair_calls_with_results() -> None:
    shaped = shape(MESSAGES, SHORT_IDS)
    ident = shaped[1]["tool_calls"][0]["id"]
    assert ident == shaped[2]["tool_call_id"] == short_id(ID)
    assert len(ident) == 9
    assert ident.isalnum()
    assert short_id("abcdefgh1") == "abcdefgh1"
    assert short_id("call_1") != short_id("call_2")
    use = {"type": "tool_use", "id": ID, "name": "f", "input": {"id": "kept"}}
    result = {"type": "tool_result", "tool_use_id": ID, "content": [{"type": "text", "text": "T", "id": 5}]}
    _, told = shape_anthropic(
        None, [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}], SHORT_IDS
    )
    assert told[0]["content"] == [{**use, "id": ident}]
    assert told[1]["content"] == [{**result, "tool_use_id": ident}]
