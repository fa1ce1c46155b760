"""Requests of `/v1/messages` and of counts as the engine gets them, and answers translated back."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from asking import prepare

from meshllm.wire.api import engine_request
from meshllm.wire.api.chat_to_messages import ChatToMessages, PrefillCut
from meshllm.wire.api.messages_request import CHAT_PATH
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api
from meshllm.wire.api.schemas import for_answer

ASKED = {"role": "user", "content": "hi"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
BOTH = pytest.mark.parametrize("api", [Api.MESSAGES, Api.COUNT_TOKENS])


def blocks(api: Api, *given: Any) -> Any:
    """The blocks that the engine gets for a user's message, or the refused parameter."""
    found = prepare(api, {"messages": [{"role": "user", "content": list(given)}]})
    if isinstance(found, Refusal):
        return found.param
    return found.body["messages"][0]["content"] if found.body is not None else list(given)


@pytest.mark.parametrize("missing", [{}, {"max_tokens": None}])
def test_the_length_of_the_answer_is_required_but_for_a_count(missing: dict[str, Any]) -> None:
    found = engine_request.prepare(Api.MESSAGES, {"messages": [ASKED], **missing})
    assert isinstance(found, Refusal)
    assert (found.status, found.param) == (400, "max_tokens")
    assert not isinstance(engine_request.prepare(Api.COUNT_TOKENS, {"messages": [ASKED], **missing}), Refusal)


def document(**source: Any) -> dict[str, Any]:
    return {"type": "document", "title": "T", "source": source}


@BOTH
@pytest.mark.parametrize(
    "source",
    [
        {"type": "text", "media_type": "text/plain", "data": "oak"},
        {"type": "content", "content": [{"type": "text", "text": "oak"}]},
        {"type": "content", "content": "oak"},
        {"type": "base64", "media_type": "text/markdown", "data": base64.b64encode(b"oak").decode()},
    ],
)
def test_documents_of_text_are_put_into_the_prompt(api: Api, source: dict[str, Any]) -> None:
    assert blocks(api, document(**source)) == [{"type": "text", "text": '<document title="T">\noak\n</document>'}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": [document(**source)]}
    assert "oak" in blocks(api, result)[0]["content"][0]["text"]


@BOTH
@pytest.mark.parametrize(
    ("block", "param"),
    [
        (document(type="base64", media_type="application/pdf", data="JVBERg=="), "source"),
        (document(type="base64", media_type="text/plain", data="JVBERg=="), "source"),
        (document(type="base64", media_type="text/plain", data="/w=="), "source"),
        (document(type="base64", media_type="text/plain", data="!"), "source"),
        (document(type="url", url="http://a/b.pdf"), "source"),
        (document(type="file", file_id="f"), "source"),
        ({"type": "document"}, "source"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.type"),
        ({"type": "text"}, "text"),
        ({"type": "container_upload"}, "type"),
        ({"type": "tool_use", "id": "t"}, "name"),
        ({"type": "tool_result"}, "tool_use_id"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused_by_name(api: Api, block: Any, param: str) -> None:
    assert blocks(api, block) == f"messages[0].content[0].{param}"


@BOTH
def test_blocks_of_other_services_become_words_or_are_left_out(api: Api) -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "oak"}}
    found = blocks(api, {"type": "redacted_thinking", "data": "x"}, search)
    assert len(found) == 1
    assert "oak" in found[0]["text"]
    result = {"type": "search_result", "title": "T", "source": "http://a", "content": [{"type": "text", "text": "oak"}]}
    assert "oak" in blocks(api, result)[0]["text"]


@pytest.mark.parametrize(
    ("given", "kept"), [(None, {}), ("", {}), ('{"a": 1}', {"a": 1}), ('{"a', {"invalid_arguments": '{"a'})]
)
def test_input_of_a_tool_is_an_object(given: Any, kept: Any) -> None:
    (found,) = blocks(Api.MESSAGES, {"type": "tool_use", "id": "t", "name": "f", "input": given})
    assert found["input"] == kept


@BOTH
@pytest.mark.parametrize(
    ("system", "kept"),
    [
        ("x-anthropic-billing-header: cc_version=2.1.197.123; cc_entrypoint=sdk-cli; cch=a5145;You are", "You are"),
        ("x-anthropic-billing-header: cc_version=2.1.197.a5a; cc_entrypoint=cli;\nYou are", "You are"),
        ("x-anthropic-billing-header: cc_version=3.0.0; CC-Session.2=a5a;\nYou are", "You are"),
        (
            [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cc_entrypoint=cli;"},
                {"type": "text", "text": "You"},
            ],
            [{"type": "text", "text": "You"}],
        ),
        ("About x-anthropic-billing-header: a=b;", "About x-anthropic-billing-header: a=b;"),
    ],
)
def test_the_billing_header_is_left_out(api: Api, system: Any, kept: Any) -> None:
    given = {"messages": [ASKED], "system": system}
    found = prepare(api, given)
    assert isinstance(found, Prepared)
    assert (found.body or given)["system"] == kept


@BOTH
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": 7}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"n": 4}, "n"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": "9"}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": 7}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
    ],
)
def test_faults_are_named(api: Api, fields: dict[str, Any], param: str) -> None:
    found = prepare(api, {"messages": [ASKED], **fields})
    assert isinstance(found, Refusal)
    assert found.param == param


def test_built_in_tools_beside_others_are_left_out() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {"name": "f", "input_schema": CITY}]
    found = prepare(Api.MESSAGES, {"messages": [ASKED], "tools": tools})
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert found.body["tools"] == tools[1:]


@pytest.mark.parametrize(("effort", "given"), [("low", "low"), ("medium", "medium"), ("max", "high"), ("odd", "odd")])
def test_effort_is_given_to_the_chat_template(effort: str, given: str) -> None:
    body = {"messages": [ASKED], "output_config": {"effort": effort}}
    found = prepare(Api.MESSAGES, body)
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert found.body["chat_template_kwargs"] == {"reasoning_effort": given}
    named = prepare(Api.MESSAGES, {**body, "chat_template_kwargs": {"reasoning_effort": "none"}})
    assert isinstance(named, Prepared)
    assert (named.body or {})["chat_template_kwargs"] == {"reasoning_effort": "none"}
    forced = {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}}
    chat = prepare(Api.MESSAGES, {**body, **forced})
    assert isinstance(chat, Prepared)
    assert (chat.body or {})["chat_template_kwargs"] == {"reasoning_effort": given}


def test_disabled_thinking_is_disabled() -> None:
    found = prepare(Api.MESSAGES, {"messages": [ASKED], "thinking": {"type": "disabled"}})
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert found.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert prepare(Api.MESSAGES, {"messages": [ASKED], "thinking": {"type": "adaptive"}}) is UNCHANGED


def test_a_schema_goes_to_the_engine_as_chat() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    thought = {"type": "thinking", "thinking": "hm"}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "done"}]}
    body = {
        "system": [{"type": "text", "text": "S"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
            {"role": "assistant", "content": [thought, {"type": "text", "text": "ok"}, use]},
            {"role": "user", "content": [result]},
        ],
        "stop_sequences": ["x"],
        "stream": True,
        "max_tokens": 9,
        "output_config": {"format": {"type": "json_schema", "schema": CITY}},
    }  # fmt: skip
    found = prepare(Api.MESSAGES, body)
    assert isinstance(found, Prepared)
    assert found.path == CHAT_PATH
    assert found.body is not None
    chat = dict(found.body)
    assert chat.pop("json_schema") == for_answer(CITY)
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert chat.pop("messages") == [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "ok"}],
            "tool_calls": [call],
            "reasoning_content": "hm",
        },
        {"role": "tool", "tool_call_id": "t", "content": "done"},
    ]
    assert chat == {
        "stop": ["x"],
        "verbose": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
    }
    counted = prepare(Api.COUNT_TOKENS, body)
    assert isinstance(counted, Prepared)
    assert counted.path == ""


def test_stream_of_chat_is_a_stream_of_messages() -> None:
    def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
    chunks = [
        chunk(role="assistant", content=None),
        chunk(reasoning_content="hm"),
        chunk(content="a"),
        chunk(tool_calls=[call]),
        {**chunk("stop"), "__verbose": {"stopping_word": "x"}},
        {"choices": [], "usage": usage},
    ]
    translator = ChatToMessages("x")
    events = [event for one in chunks for event in translator.event(one)]
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", "content_block_delta") * 3,
        "message_delta",
        "message_stop",
    ]
    assert [event["content_block"]["type"] for event in events if "content_block" in event] == [
        "thinking",
        "text",
        "tool_use",
    ]
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "x"}
    assert events[-2]["usage"] == {"input_tokens": 7, "cache_read_input_tokens": 2, "output_tokens": 4}


@pytest.mark.parametrize(
    ("finish", "stop"), [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use")]
)
def test_whole_answer_of_chat_is_a_message(finish: str, stop: str) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": "t", "reasoning_content": "hm", "tool_calls": [call]}
    found = ChatToMessages("x").whole({"model": "m", "choices": [{"message": message, "finish_reason": finish}]})
    assert (found["stop_reason"], found["stop_sequence"]) == (stop, None)
    assert [block["type"] for block in found["content"]] == ["thinking", "text", "tool_use"]
    assert found["content"][2]["input"] == {"a": 1}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_prefill_is_cut_however_the_stream_is_cut(size: int) -> None:
    text, cut = "One, two, three", PrefillCut("One, two,")
    out = ""
    for start in range(0, len(text), size):
        delta = {"type": "text_delta", "text": text[start : start + size]}
        out += "".join(event["delta"]["text"] for event in cut.event({"type": "content_block_delta", "delta": delta}))
    assert out == " three"
    assert PrefillCut("Two").whole({"content": [{"type": "text", "text": text}]})["content"][0]["text"] == text
    assert (
        PrefillCut("One,").whole({"content": [{"type": "text", "text": text}]})["content"][0]["text"] == " two, three"
    )
