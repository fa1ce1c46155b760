"""Requests of `/v1/responses` as the engine gets them."""

from __future__ import annotations

from typing import Any

import pytest

from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.responses_calls import ResponsesCalls
from meshllm.wire.api.routes import Api

SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
ASKED = {"role": "user", "content": "a"}
TEXT = {"type": "reasoning_text", "text": "hm"}


@pytest.mark.parametrize(
    ("given_items", "wanted"),
    [
        ([SAID], [{**SAID, "type": "message"}]),
        ([{"role": "user", "content": "a"}, SAID], [{"role": "user", "content": "a"}, {**SAID, "type": "message"}]),
        ([{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}, ASKED], [ASKED]),
        (
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}],
            [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": [TEXT]}],
        ),
    ],
)
def test_items_that_the_engine_refuses_are_rewritten(given_items: list[Any], wanted: list[Any]) -> None:
    body = {"model": "m", "input": given_items}
    assert prepare(Api.RESPONSES, body) == Prepared({"model": "m", "input": wanted})
    assert prepare(Api.RESPONSES, {"input": wanted}) is UNCHANGED


def kept(items: list[Any], **fields: Any) -> Any:
    """The items that the engine gets, or the refused parameter."""
    found = prepare(Api.RESPONSES, {"model": "m", "input": items, **fields})
    if isinstance(found, Refusal):
        return found.param
    return found.body["input"] if found.body is not None else items


def call(name: str, arguments: str, call_id: str = "c") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ({"role": "user", "content": "a", "status": None}, [{"role": "user", "content": "a"}]),
        (
            {"role": "user", "content": [{"type": "output_text", "text": "a"}]},
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
        ),
        (
            {"type": "message", "role": "assistant", "content": None},
            [{"type": "message", "role": "assistant", "content": ""}],
        ),
        (call("f", ""), [call("f", "{}")]),
        (call("f", '{"a'), [call("f", '{"invalid_arguments":"{\\"a"}')]),
        ({"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x"}, [call("patch", '{"input":"x"}')]),
        (
            {"type": "local_shell_call", "call_id": "c", "action": {"command": ["ls"]}, "status": "completed"},
            [call("local_shell", '{"action":{"command":["ls"]}}')],
        ),
        (
            {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
            [call("shell", '{"action":{"commands":["ls"]}}')],
        ),
        (
            {"type": "apply_patch_call_output", "call_id": "c", "output": "ok"},
            [{"type": "function_call_output", "call_id": "c", "output": "ok"}],
        ),
        (
            {"type": "function_call_output", "call_id": "c", "output": None},
            [{"type": "function_call_output", "call_id": "c", "output": ""}],
        ),
        (
            {"type": "function_call_output", "call_id": "c", "output": {"a": 1}},
            [{"type": "function_call_output", "call_id": "c", "output": '{"a":1}'}],
        ),
        ({"type": "mcp_list_tools", "id": "x", "tools": []}, []),
        (
            {"type": "mcp_call", "id": "c", "name": "go", "arguments": "{}", "output": "went"},
            [call("go", "{}"), {"type": "function_call_output", "call_id": "c", "output": "went"}],
        ),
    ],
)
def test_items_become_what_the_engine_knows(item: Any, wanted: list[Any]) -> None:
    assert kept([item]) == wanted


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "web_search_call", "action": {"query": "oak"}}, "oak"),
        ({"type": "code_interpreter_call", "code": "1+1"}, "1+1"),
        ({"type": "compaction", "encrypted_content": "x"}, "compacted"),
    ],
)
def test_items_that_are_no_calls_of_the_caller_become_words(item: Any, words: str) -> None:
    (found,) = kept([item])
    assert found["role"] in ("assistant", "developer")
    assert words in str(found["content"])


@pytest.mark.parametrize(
    ("item", "param"),
    [
        (7, "input[0]"),
        ({"type": "item_reference", "id": "a"}, "input[0]"),
        ({"id": "a"}, "input[0]"),
        ({"type": "from_the_future"}, "input[0].type"),
        ({"role": "boss", "content": "a"}, "input[0].role"),
        ({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}, "input[0].content[0].image_url"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input[0].content[0].file_id"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "input[0].content[0].type"),
        ({"type": "function_call", "call_id": "c"}, "input[0].name"),
        ({"type": "function_call_output", "output": "a"}, "input[0].call_id"),
    ],
)
def test_faults_of_items_are_named(item: Any, param: str) -> None:
    assert kept([item]) == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"n": 2}, "n"),
        ({"n_cmpl": 3}, "n_cmpl"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"instructions": 7}, "instructions"),
        ({"reasoning": "much"}, "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]}, "tools[0].tools[0].type"),
    ],
)
def test_faults_of_fields_are_named(fields: dict[str, Any], param: str) -> None:
    assert kept([ASKED], **fields) == param


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "", "conversation": None, "background": False},
        {"include": ["reasoning.encrypted_content"], "store": False, "truncation": "auto"},
        {"reasoning": {"effort": "high", "summary": "auto"}, "text": {"verbosity": "low"}, "prompt_cache_key": "x"},
        {"instructions": None, "tools": None, "text": None},
        {"n": 1, "n_cmpl": None},
    ],
)
def test_what_agents_send_is_kept(fields: dict[str, Any]) -> None:
    assert kept([ASKED], **fields) == [ASKED]


SKY = {
    "type": "namespace",
    "name": "mcp__sky",
    "tools": [{"type": "function", "name": "look"}, {"type": "function", "name": "go"}],
}
GO = {"type": "function", "name": "go"}


def test_tools_of_namespaces_are_offered_and_come_back() -> None:
    body = {
        "input": [ASKED, {**call("look", "{}"), "namespace": "mcp__sky"}],
        "tools": [SKY, GO, {"type": "web_search"}],
    }
    found = prepare(Api.RESPONSES, body)
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert [tool["name"] for tool in found.body["tools"]] == ["look", "mcp__sky__go", "go"]
    assert found.translator is not None
    answer = found.translator("x").whole({"output": [call("mcp__sky__go", "{}"), call("go", "{}"), call("look", "{}")]})
    assert [(item["name"], item.get("namespace")) for item in answer["output"]] == [
        ("go", "mcp__sky"),
        ("go", None),
        ("look", "mcp__sky"),
    ]


def test_custom_tools_are_offered_and_come_back() -> None:
    found = prepare(
        Api.RESPONSES, {"input": "a", "tools": [{"type": "custom", "name": "patch", "format": {"type": "text"}}]}
    )
    assert isinstance(found, Prepared)
    assert found.translator is not None
    translator = found.translator("x")
    item = {**call("patch", ""), "id": "fc_1", "status": "in_progress"}
    events = [
        {"type": "response.output_item.added", "item": item},
        {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": '{"input": "a\\'},
        {"type": "response.function_call_arguments.done", "item_id": "fc_1", "arguments": '{"input": "a\\nb"}'},
        {"type": "response.output_item.done", "item": {**item, "arguments": '{"input": "a\\nb"}'}},
    ]
    out = [new for event in events for new in translator.event(event)]
    assert [event["type"] for event in out] == [
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
    ]
    assert (out[0]["item"]["type"], out[0]["item"]["input"]) == ("custom_tool_call", "")
    assert out[1]["delta"] == out[2]["input"] == out[3]["item"]["input"] == "a\nb"


def streamed(texts: list[str]) -> list[dict[str, Any]]:
    """The translated events of a message with these texts."""
    whole = "".join(texts)
    item = {"type": "message", "id": "msg", "role": "assistant", "content": []}
    done = {**item, "content": [{"type": "output_text", "text": whole}]}
    events = [
        {"type": "response.output_item.added", "item": item},
        {"type": "response.content_part.added", "item_id": "msg", "part": {"type": "output_text", "text": ""}},
        *({"type": "response.output_text.delta", "item_id": "msg", "delta": text} for text in texts),
        {"type": "response.output_text.done", "item_id": "msg", "text": whole},
        {"type": "response.content_part.done", "item_id": "msg", "part": done["content"][0]},
        {"type": "response.output_item.done", "item": done},
        {"type": "response.completed", "response": {"output": [done]}},
    ]
    translator = ResponsesCalls("x")
    return [new for event in events for new in translator.event(event)]


def test_stream_of_an_enveloped_call_is_a_function_call() -> None:
    events = streamed(['{"name": "f", "arg', 'uments": {"a"', ": 1}}"])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[3]["arguments"] == '{"a": 1}'
    assert events[4]["item"] == events[5]["response"]["output"][0]
    assert (events[0]["item"]["name"], events[4]["item"]["arguments"]) == ("f", '{"a": 1}')


@pytest.mark.parametrize("texts", [['{"answer": {"b"', ": 2}}"], ['{"b"', ": 2}"]])
def test_stream_of_an_answer_stays_a_message(texts: list[str]) -> None:
    events = streamed(texts)
    assert [event["type"].removeprefix("response.") for event in events][:3] == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
    ]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == '{"b": 2}'
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text
