"""Rules that hold in every API alike: one constraint of an answer, contents that are there, types, and no tokens.

Most were found by `scripts/fuzz bodies`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from asking import prepare

from meshllm.wire.api.chat_stream import with_own_id
from meshllm.wire.api.chat_to_messages import NoMessageTokens
from meshllm.wire.api.completion_request import NoCompletionTokens, prepare_completion
from meshllm.wire.api.prepared import Prepared
from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.routes import Api
from meshllm.wire.api.several_choices import assembled, events_in
from meshllm.wire.api.stream_repair import stream_repair

SAID = [{"role": "user", "content": "a"}]
ASKED: dict[Api, dict[str, Any]] = {
    Api.CHAT: {"messages": SAID},
    Api.COMPLETIONS: {"prompt": "a"},
    Api.RESPONSES: {"input": "a"},
    Api.MESSAGES: {"messages": SAID},
}
WORD = {"const": "x"}
FORMATS: dict[Api, dict[str, Any]] = {
    Api.CHAT: {"response_format": {"type": "json_object"}},
    Api.COMPLETIONS: {"response_format": {"type": "json_object"}},
    Api.RESPONSES: {"text": {"format": {"type": "json_object"}}},
    Api.MESSAGES: {"output_format": {"type": "json_object"}},
}
APIS = pytest.mark.parametrize("api", ASKED)


def refused(api: Api, **fields: Any) -> Refusal:
    found = prepare(api, {"model": "m", **ASKED[api], **fields})
    assert isinstance(found, Refusal), found
    return found


@APIS
def test_a_schema_in_the_engines_own_field_is_kept(api: Api) -> None:
    found = prepare(api, {"model": "m", **ASKED[api], "json_schema": WORD})
    assert isinstance(found, Prepared)
    assert found.body is not None
    assert "x" in json.dumps(found.body["json_schema"])


@APIS
def test_two_schemas_exclude_each_other(api: Api) -> None:
    assert refused(api, **FORMATS[api], json_schema=WORD).param == "json_schema"


@APIS
@pytest.mark.parametrize("own", [True, False])
def test_a_grammar_beside_a_schema_is_refused(api: Api, own: bool) -> None:
    schema = {"json_schema": WORD} if own else FORMATS[api]
    assert refused(api, grammar='root ::= "a"', **schema).param == "grammar"


def test_a_grammar_is_kept_or_refused() -> None:
    for api, asked in ASKED.items():
        found = prepare(api, {"model": "m", **asked, "grammar": 'root ::= "a"'})
        if api is Api.MESSAGES:  # the engine's conversion drops it
            assert isinstance(found, Refusal)
            assert found.param == "grammar"
        else:
            assert isinstance(found, Prepared)
            assert found.body is None or found.body["grammar"]


TOOLS: dict[Api, Any] = {
    Api.CHAT: {"type": "function", "function": {"name": "f", "parameters": {}}},
    Api.RESPONSES: {"type": "function", "name": "f", "parameters": {}},
    Api.MESSAGES: {"name": "f", "input_schema": {}},
}


@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES])
def test_a_grammar_beside_tools_is_refused(api: Api) -> None:
    assert refused(api, grammar='root ::= "a"', tools=[TOOLS[api]]).param == "grammar"


@pytest.mark.parametrize("api", TOOLS)
@pytest.mark.parametrize("strict", ["true", 1, [True], {}])
def test_strict_of_a_tool_is_true_or_false(api: Api, strict: Any) -> None:
    tool = json.loads(json.dumps(TOOLS[api]))
    tool.get("function", tool)["strict"] = strict
    where = "tools[0].function.strict" if api is Api.CHAT else "tools[0].strict"
    assert refused(api, tools=[tool]).param == where


@pytest.mark.parametrize(
    ("api", "fields", "param"),
    [
        (Api.CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (Api.COMPLETIONS, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (Api.CHAT, {"response_format": {"type": "json_schema", "json_schema": "x"}}, "response_format.json_schema"),
        (
            Api.CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        (Api.RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        (Api.MESSAGES, {"output_format": {"type": "json_schema"}}, "output_format.schema"),
        (Api.MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_a_missing_schema_is_named_as_the_api_has_it(api: Api, fields: dict[str, Any], param: str) -> None:
    assert refused(api, **fields).param == param


@pytest.mark.parametrize("role", ["user", "system", "developer"])
@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES])
def test_a_message_without_content_is_refused(api: Api, role: str) -> None:
    field = "messages" if api is Api.CHAT else "input"
    assert refused(api, **{field: [{"role": role, "content": None}]}).param == f"{field}[0].content"


def test_a_message_of_messages_without_content_is_refused() -> None:
    assert refused(Api.MESSAGES, messages=[{"role": "user", "content": None}]).param == "messages[0].content"


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "tool", "tool_call_id": "a"}])
def test_null_contents_of_histories_end_no_session(message: dict[str, Any]) -> None:
    history = [*SAID, {**message, "content": None}, *SAID]
    assert isinstance(prepare(Api.CHAT, {"model": "m", "messages": history}), Prepared)


# -- a prompt that is read, and nothing written


def test_no_tokens_of_a_completion() -> None:
    made = prepare_completion({"prompt": ["ab", "c"], "max_tokens": 0, "echo": True, "logprobs": None}).translator
    assert made is not None
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    answer = {"choices": [{"index": 0, "text": "x", "finish_reason": "stop", "logprobs": {}}], "usage": usage}
    cut = NoCompletionTokens().whole(answer)
    assert cut["choices"] == [{"index": 0, "text": "", "finish_reason": "length", "logprobs": None}]
    assert cut["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    [event] = made("1").event({"choices": [{"index": 1, "text": "x", "finish_reason": None}]})
    assert event["choices"] == [{"index": 1, "text": "c", "finish_reason": None, "logprobs": None}]


def test_no_tokens_of_a_message() -> None:
    made = NoMessageTokens("1")
    block = {"type": "text", "text": "x"}
    whole = made.whole(
        {"content": [block], "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 1}}
    )
    nothing = {"stop_reason": "max_tokens", "stop_sequence": None}
    assert whole == {"content": [], **nothing, "usage": {"input_tokens": 3, "output_tokens": 0}}
    assert list(made.event({"type": "content_block_start", "index": 0, "content_block": block})) == []
    [event] = made.event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}})
    assert event == {"type": "message_delta", "delta": nothing, "usage": {"output_tokens": 0}}


# -- answers


def test_progress_before_the_first_logprobs_is_no_fault() -> None:
    """`return_progress` begins each choice with an event whose logprobs are null."""
    chunks = [
        {"choices": [{"index": 0, "text": "", "logprobs": None}], "prompt_progress": {"total": 1}},
        {"choices": [{"index": 0, "text": "a", "logprobs": {"tokens": ["a"]}, "finish_reason": "length"}]},
    ]
    stream = b"".join(b"data: %b\n\n" % json.dumps({"object": "text_completion", **chunk}).encode() for chunk in chunks)
    answer = assembled(events_in(stream))
    assert answer["choices"] == [{"index": 0, "finish_reason": "length", "text": "a", "logprobs": {"tokens": ["a"]}}]
    assert "prompt_progress" not in answer


@pytest.mark.parametrize("pieces", [1, 7])
def test_ids_of_completions_are_their_own(pieces: int) -> None:
    said = r'{"id":"chatcmpl-said","x":1}'
    chunk = {"id": "chatcmpl-1", "choices": [{"index": 0, "text": said, "finish_reason": "stop"}]}
    stream = f"data: {json.dumps(chunk, separators=(',', ':'))}\n\ndata: [DONE]\n\n".encode()
    repair = stream_repair(Api.COMPLETIONS, model="m", ident="2", created=1, request={}, shared=False)
    size = -(-len(stream) // pieces)
    out = b"".join(repair.feed(stream[at : at + size]) for at in range(0, len(stream), size)) + repair.finish()
    value = json.loads(out.split(b"\n")[0].removeprefix(b"data: "))
    assert (value["id"], value["choices"][0]["text"]) == ("cmpl-1", said)
    whole = json.dumps(chunk, separators=(",", ":")).encode()
    assert json.loads(with_own_id(Api.COMPLETIONS, whole)) == value
    assert with_own_id(Api.CHAT, whole) is whole


@pytest.mark.parametrize(
    ("message", "code"),
    [("Unexpected empty grammar stack after accepting piece: x", "invalid_prompt"), ("boo", "server_error")],
)
def test_a_failed_response_has_the_words_of_its_error(message: str, code: str) -> None:
    error = {"error": {"code": 500, "message": f"got exception: {message}", "type": "server_error"}}
    repair = stream_repair(Api.RESPONSES, model="m", ident="2", created=1, request={}, shared=False)
    out = repair.feed(b"data: %b\n\n" % json.dumps(error).encode()) + repair.finish()
    events = [json.loads(line[6:]) for line in out.decode().split("\n") if line.startswith("data: ")]
    told, failed = events[-2], events[-1]
    assert (told["type"], failed["type"]) == ("error", "response.failed")
    assert failed["response"]["error"] == {"code": code, "message": told["message"]}
