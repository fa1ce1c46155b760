"""The real engine keeps what a request asks for, or the request is refused with the field's name."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.daemons import MODEL, Daemon

pytestmark = pytest.mark.engine

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TIME = {"type": "object", "properties": {"zone": {"type": "string", "maxLength": 5}}, "required": ["zone"]}
ASKED = [{"role": "user", "content": "Tell me a story."}]
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(served: Daemon) -> Ask:
    """Posts a body: status, and JSON or, of a stream, its events."""
    base = served.base_url.removesuffix("/v1")

    def post(path: str, /, **body: Any) -> tuple[int, Any]:
        data = json.dumps({"model": MODEL, "temperature": 0, **body}).encode()
        request = urllib.request.Request(base + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        if not body.get("stream"):
            return 200, json.loads(text)
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return 200, [json.loads(line) for line in lines if line != "[DONE]"]

    return post


def chat_tools(*names: str) -> list[dict[str, Any]]:
    schemas = {"weather": CITY, "time": TIME}
    return [{"type": "function", "function": {"name": name, "parameters": schemas[name]}} for name in names]


def call_of(path: str, answer: Any) -> tuple[str, dict[str, Any], str]:
    """Name, arguments and stop reason of the one call in a whole answer or a stream."""
    if path == "/v1/messages":
        return _anthropic_call(answer)
    if path == "/v1/responses":
        if isinstance(answer, list):
            deltas = [event["delta"] for event in answer if event["type"] == "response.function_call_arguments.delta"]
            answer = next(event["response"] for event in answer if event["type"] == "response.completed")
            assert "".join(deltas) == answer["output"][0]["arguments"]
        (call,) = answer["output"]
        assert call["type"] == "function_call"
        return call["name"], json.loads(call["arguments"]), answer["status"]
    if isinstance(answer, list):
        choices = [choice for chunk in answer for choice in chunk["choices"]]
        calls = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
        assert not any(choice["delta"].get("content") for choice in choices)
        (name,) = [call["function"]["name"] for call in calls if "name" in call["function"]]
        text = "".join(call["function"].get("arguments", "") for call in calls)
        return name, json.loads(text), next(filter(None, (choice["finish_reason"] for choice in choices)))
    message = answer["choices"][0]["message"]
    assert not message["content"]
    (call,) = message["tool_calls"]
    return call["function"]["name"], json.loads(call["function"]["arguments"]), answer["choices"][0]["finish_reason"]


def _anthropic_call(answer: Any) -> tuple[str, dict[str, Any], str]:
    if isinstance(answer, list):
        assert answer[0]["type"] == "message_start"
        (block,) = [event["content_block"] for event in answer if event["type"] == "content_block_start"]
        text = "".join(event["delta"]["partial_json"] for event in answer if event["type"] == "content_block_delta")
        (stop,) = [event["delta"]["stop_reason"] for event in answer if event["type"] == "message_delta"]
        assert answer[-1]["type"] == "message_stop"
        return block["name"], json.loads(text), stop
    (block,) = answer["content"]
    assert answer["usage"]["output_tokens"] > 0
    return block["name"], block["input"], answer["stop_reason"]


FORCED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"tools": chat_tools("weather", "time"), "tool_choice": "required"}, ""),
    (
        "/v1/chat/completions",
        {"tools": chat_tools("weather", "time"), "tool_choice": {"type": "function", "function": {"name": "time"}}},
        "time",
    ),
    (
        "/v1/responses",
        {
            "tools": [{"type": "function", "name": "weather", "parameters": CITY}],
            "tool_choice": {"type": "function", "name": "weather"},
        },
        "weather",
    ),
    (
        "/v1/messages",
        {
            "tools": [{"name": "time", "input_schema": TIME}, {"name": "weather", "input_schema": CITY}],
            "tool_choice": {"type": "tool", "name": "weather"},
        },
        "weather",
    ),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "fields", "name"), FORCED, ids=["chat-required", "chat", "responses", "messages"])
def test_a_forced_call_is_made(ask: Ask, path: str, fields: dict[str, Any], name: str, stream: bool) -> None:
    asked = {"input": ASKED} if path == "/v1/responses" else {"messages": ASKED}
    limit = {"max_output_tokens": 120} if path == "/v1/responses" else {"max_tokens": 120}
    status, answer = ask(path, **asked, **limit, **fields, stream=stream)
    assert status == 200, answer
    called, arguments, stop = call_of(path, answer)
    assert called == name or (not name and called in ("weather", "time"))
    assert arguments.get("city") in ("Paris", "Rome") or "zone" in arguments
    assert stop in ("tool_calls", "completed", "tool_use")


def text_of(path: str, answer: Any) -> str:
    """The text of a whole answer or a stream."""
    if path == "/v1/responses":
        if isinstance(answer, list):
            return "".join(event["delta"] for event in answer if event["type"] == "response.output_text.delta")
        return str(answer["output"][0]["content"][0]["text"])
    if path == "/v1/messages":
        if isinstance(answer, list):
            deltas = [event["delta"] for event in answer if event["type"] == "content_block_delta"]
            return "".join(delta["text"] for delta in deltas)
        return "".join(block["text"] for block in answer["content"])
    key = "text" if path == "/v1/completions" else "content"
    if isinstance(answer, list):
        choices = [choice for chunk in answer for choice in chunk["choices"]]
        return "".join((choice.get("delta") or choice).get(key) or "" for choice in choices)
    choice = answer["choices"][0]
    return choice.get("message", choice)[key] or ""


SCHEMA = {"type": "json_schema", "name": "x", "strict": True, "schema": CITY}
STRUCTURED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
    ("/v1/responses", {"text": {"format": SCHEMA}}),
    ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": CITY}}}),
    ("/v1/messages", {"output_format": {"type": "json_schema", "schema": CITY}}),
    ("/v1/completions", {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
    ("/v1/chat/completions", {"response_format": SCHEMA | {"json_schema": SCHEMA}, "tools": chat_tools("time")}),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "fields"), STRUCTURED)
def test_a_schema_of_the_answer_is_kept(ask: Ask, path: str, fields: dict[str, Any], stream: bool) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Which city is the capital of France?"}]}
    if path == "/v1/responses":
        asked = {"input": "Which city is the capital of France?", "max_output_tokens": 120}
    elif path == "/v1/completions":
        asked = {"prompt": "The capital of France as JSON:", "max_tokens": 120}
    else:
        asked["max_tokens"] = 120
    status, answer = ask(path, **asked, **fields, stream=stream)
    assert status == 200, answer
    if "tools" in fields and not text_of(path, answer):
        assert call_of(path, answer)[0] == "time"  # the model had the choice
    else:
        assert json.loads(text_of(path, answer))["city"] in ("Paris", "Rome")


def test_a_stream_of_several_prompts_ends(ask: Ask) -> None:
    status, chunks = ask("/v1/completions", prompt=["One, two,", "Red, green,", "a b c"], max_tokens=2, stream=True)
    assert status == 200
    assert not any("error" in chunk for chunk in chunks)
    assert {choice["index"] for chunk in chunks for choice in chunk["choices"]} == {0, 1, 2}


NULLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi", "name": None, "tool_call_id": None}]}),
    (
        "/v1/chat/completions",
        {"messages": [*ASKED, {"role": "assistant", "content": "a", "reasoning_content": None}, *ASKED]},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [
                *ASKED,
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "tool_calls": [{"id": None, "type": "function", "function": {"name": "time", "arguments": "{}"}}],
                },
                {"role": "tool", "content": "12", "tool_call_id": None},
            ],
            "tools": [{"type": "function", "function": {"name": "time", "description": None, "strict": None}}],
            "grammar": None,
            "reasoning_format": None,
            "response_format": None,
            "stop": None,
        },
    ),
    ("/v1/responses", {"input": "hi", "tools": None, "instructions": None, "text": None, "reasoning": None}),
    ("/v1/messages", {"messages": ASKED, "tools": None, "system": None, "tool_choice": None, "stop_sequences": None}),
    (
        "/v1/messages",
        {"messages": ASKED, "tools": [{"name": "a", "description": None, "input_schema": {"type": "object"}}]},
    ),
    ("/v1/completions", {"prompt": "a", "suffix": None, "logprobs": None, "echo": None, "best_of": None}),
]


@pytest.mark.parametrize(("path", "fields"), NULLS)
def test_null_means_not_there(ask: Ask, path: str, fields: dict[str, Any]) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    status, answer = ask(path, **fields, **{limit: 2})
    assert status == 200, answer


@pytest.mark.parametrize("arguments", ["", '{"zone": "U', "[1]", None])
def test_broken_arguments_in_a_history_do_not_end_the_session(ask: Ask, arguments: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "time", "arguments": arguments}}
    history = [
        *ASKED,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "?"},
    ]
    status, answer = ask("/v1/chat/completions", messages=history, tools=chat_tools("time"), max_tokens=2)
    assert status == 200, answer
    items = [
        {"role": "user", "content": "hi"},
        {"type": "function_call", "call_id": "c", "name": "time", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c", "output": "?"},
    ]
    status, answer = ask("/v1/responses", input=items, max_output_tokens=2)
    assert status == 200, answer


TEXTLESS = [{"role": "user", "content": [{"type": "text", "text": None}]}]
CUSTOM = [{"type": "custom", "custom": {"name": "a"}}]
SEARCH = [{"type": "web_search_20250305", "name": "web_search"}]
AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [AUDIO]}]}, "messages"),
    ("/v1/chat/completions", {"messages": [{"content": "a"}]}, "messages[0].role"),
    ("/v1/chat/completions", {"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role"),
    ("/v1/chat/completions", {"messages": TEXTLESS}, "messages[0].content[0].text"),
    ("/v1/chat/completions", {"messages": ASKED, "tools": CUSTOM}, "tools[0].type"),
    ("/v1/chat/completions", {"messages": ASKED, "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("/v1/chat/completions", {"messages": ASKED, "reasoning_format": "unknown"}, "reasoning_format"),
    ("/v1/chat/completions", {"messages": ASKED, "max_tokens": "5"}, "max_tokens"),
    ("/v1/chat/completions", {"messages": ASKED, "samplers": ["top_k"] * 5000}, "samplers"),
    ("/v1/chat/completions", {"messages": ASKED, "logit_bias": {str(token): 1 for token in range(9000)}}, "logit_bias"),
    ("/v1/chat/completions", {"messages": ASKED, "stop": ["a"] * 5000}, "stop"),
    ("/v1/chat/completions", {"messages": ASKED, "logprobs": True, "top_logprobs": 50000}, "top_logprobs"),
    ("/v1/chat/completions", {"messages": ASKED, "grammar_triggers": [{"type": 99}]}, "grammar_triggers"),
    ("/v1/chat/completions", {"messages": ASKED, "functions": [{"name": "a"}]}, "functions"),
    ("/v1/chat/completions", {}, "messages"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
    ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
    ("/v1/completions", {"prompt": "a", "best_of": 3}, "best_of"),
    ("/v1/completions", {"prompt": "a", "n_probs": 50000}, "n_probs"),
    ("/v1/responses", {"input": [{"type": "item_reference", "id": "a"}]}, "input[0]"),
    ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
    ("/v1/responses", {"input": "a", "conversation": "conv_1"}, "conversation"),
    ("/v1/responses", {"input": "a", "background": True}, "background"),
    ("/v1/responses", {"input": [{"type": "from_the_future"}]}, "input[0].type"),
    ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ("/v1/messages", {"messages": [{"role": "user", "content": [PDF]}], "max_tokens": 5}, ""),
    ("/v1/messages", {"messages": ASKED, "max_tokens": 5, "tools": SEARCH}, ""),
    ("/v1/messages", {"messages": ASKED, "max_tokens": 5, "mcp_servers": [{"type": "url"}]}, ""),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "fields", "param"), REFUSED)
def test_a_fault_of_the_caller_is_a_400_that_names_the_field(
    ask: Ask, path: str, fields: dict[str, Any], param: str, stream: bool
) -> None:
    status, answer = ask(path, **fields, stream=stream)
    assert status == 400, answer
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert error.get("param", "") == param
    assert "exception" not in error["message"]
    assert param.partition("[")[0].rpartition(".")[2] in error["message"]


def count(ask: Ask, **body: Any) -> int:
    status, answer = ask("/v1/messages/count_tokens", **body)
    assert status == 200, answer
    return int(answer["input_tokens"])


def test_a_text_document_is_in_the_prompt(ask: Ask) -> None:
    plain = count(ask, messages=ASKED)
    text = {"type": "text", "media_type": "text/plain", "data": "The treasure is under the old oak. " * 5}
    document = {"type": "document", "title": "Map", "source": text}
    found = {
        "type": "search_result",
        "title": "T",
        "source": "http://a",
        "content": [{"type": "text", "text": "oak " * 40}],
    }
    for block in (document, found):
        asked = [{"role": "user", "content": [block, {"type": "text", "text": "Where?"}]}]
        assert count(ask, messages=asked) > plain + 30


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_only_what_follows_a_prefill_is_answered(ask: Ask, stream: bool) -> None:
    prefill = "One, two, three,"
    asked = [{"role": "user", "content": "Count to ten."}, {"role": "assistant", "content": prefill}]
    status, answer = ask("/v1/messages", messages=asked, max_tokens=8, stream=stream)
    assert status == 200
    assert prefill not in text_of("/v1/messages", answer)
    assert "four" in text_of("/v1/messages", answer)


def test_namespaced_tools_are_offered_and_called_by_their_names(ask: Ask) -> None:
    inner = {"type": "function", "name": "weather", "description": "The weather.", "parameters": CITY}
    tools = [{"type": "namespace", "name": "mcp__sky", "description": "The sky.", "tools": [inner]}]
    choice = {"type": "function", "name": "weather"}
    status, answer = ask("/v1/responses", input="hi", tools=tools, tool_choice=choice, max_output_tokens=90)
    assert status == 200, answer
    (call,) = answer["output"]
    assert (call["name"], call["namespace"]) == ("weather", "mcp__sky")
    status, events = ask(
        "/v1/responses", input="hi", tools=tools, tool_choice=choice, max_output_tokens=90, stream=True
    )
    assert status == 200
    assert [event["item"]["namespace"] for event in events if event["type"] == "response.output_item.done"] == [
        "mcp__sky"
    ]
    back = [
        {"role": "user", "content": "hi"},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "x"},
    ]
    assert ask("/v1/responses", input=back, tools=tools, max_output_tokens=2)[0] == 200


def test_custom_tools_are_called_with_a_text(ask: Ask) -> None:
    tools = [{"type": "custom", "name": "shell", "description": "Runs a command."}]
    choice = {"type": "custom", "name": "shell"}
    common: dict[str, Any] = {"input": "hi", "tools": tools, "tool_choice": choice, "max_output_tokens": 200}
    status, events = ask("/v1/responses", **common, stream=True)
    assert status == 200
    kinds = [event["type"] for event in events]
    assert "response.custom_tool_call_input.done" in kinds or "response.incomplete" in kinds
    item = next(event["item"] for event in events if event["type"] == "response.output_item.done")
    assert (item["type"], item["name"]) == ("custom_tool_call", "shell")


def test_items_of_other_services_do_not_end_a_session(ask: Ask) -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        {
            "type": "local_shell_call",
            "call_id": "c2",
            "action": {"type": "exec", "command": ["ls"]},
            "status": "completed",
        },
        {"type": "local_shell_call_output", "call_id": "c2", "output": "a b"},
        {"type": "mcp_list_tools", "id": "m", "server_label": "a", "tools": []},
        {"type": "mcp_call", "id": "m2", "name": "go", "arguments": "{}", "output": "went"},
        {"type": "compaction", "id": "k", "encrypted_content": "x"},
        {"role": "user", "content": "go on"},
    ]
    status, answer = ask("/v1/responses", input=items, max_output_tokens=2)
    assert status == 200, answer


@pytest.mark.parametrize("grammar", ["root ::= [z-a]", "root ::= [^\\x00-\\U0010FFFF]"])
def test_a_grammar_that_no_token_fits_fails_its_request_alone(ask: Ask, served: Daemon, grammar: str) -> None:
    """The token that ends an answer aborted the engine."""
    (engine,) = [process.pid for process in served.children() if "llama-server" in process.name()]
    for fields in ({"top_k": 1}, {"top_k": 4, "top_p": 0}, {"stream": True, "top_k": 1}):
        status, answer = ask("/v1/completions", prompt="-1", grammar=grammar, max_tokens=2, **fields)
        error = answer[-1]["error"] if isinstance(answer, list) else answer["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "grammar")
        assert status == 400 or "stream" in fields
    assert engine in [process.pid for process in served.children()]


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_of_an_empty_prompt_end(ask: Ask, stream: bool) -> None:
    """They waited for a prompt that was answered without them."""
    prefill = [{"role": "assistant", "content": ""}]  # which this model's template renders as nothing
    for path, asked, count in (
        ("/v1/completions", {"prompt": ""}, 2),
        ("/v1/completions", {"prompt": ["", "a"]}, 4),
        ("/v1/chat/completions", {"messages": prefill}, 2),
    ):
        status, answer = ask(path, **asked, n=2, max_tokens=2, stream=stream)
        assert status == 200, answer
        chunks = answer if stream else [answer]
        assert len({choice["index"] for chunk in chunks for choice in chunk["choices"]}) == count


def test_logprobs_have_the_shape_of_their_api(ask: Ask) -> None:
    status, answer = ask("/v1/chat/completions", messages=ASKED, max_tokens=3, logprobs=True, top_logprobs=0)
    assert status == 200
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3
    assert all(token["logprob"] <= 0 and token["top_logprobs"] == [] for token in tokens)
    status, answer = ask("/v1/completions", prompt="One, two,", max_tokens=3, logprobs=2)
    listed = answer["choices"][0]["logprobs"]
    assert [len(listed[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [3] * 4
    assert "".join(listed["tokens"]) == answer["choices"][0]["text"]
    assert all(len(tops) == 2 for tops in listed["top_logprobs"])
    status, chunks = ask("/v1/completions", prompt="One, two,", max_tokens=3, logprobs=0, stream=True)
    found = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice.get("logprobs")]
    assert len([token for entry in found for token in entry["tokens"]]) == 3


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_echo_puts_the_prompt_before_the_text(ask: Ask, stream: bool) -> None:
    status, answer = ask("/v1/completions", prompt="One, two,", max_tokens=3, echo=True, stream=stream)
    assert status == 200
    assert text_of("/v1/completions", answer).startswith("One, two,")


def test_windows_and_limits_are_cut_to_what_they_mean(ask: Ask) -> None:
    for fields in (
        {"repeat_last_n": 2147483647},
        {"dry_penalty_last_n": 2147483647, "dry_multiplier": 0.5},
        {"repeat_last_n": -1},
    ):
        status, answer = ask("/v1/chat/completions", messages=ASKED, max_tokens=2, **fields)
        assert status == 200, answer
    status, answer = ask("/v1/completions", prompt="a", max_tokens=2**32 - 1, stop=[" ", "\n", ",", "."])
    assert status == 200, answer


def test_a_new_session_of_claude_code_finds_its_system_prompt_in_the_cache(ask: Ask) -> None:
    def asked(sign: str) -> int:
        header = f"x-anthropic-billing-header: cc_version=2.1.197.{sign}; cc_entrypoint=sdk-cli;"
        system = [{"type": "text", "text": header}, {"type": "text", "text": "You are Claude Code. " * 20}]
        return count(ask, system=system, messages=ASKED)

    assert asked("123") == asked("a5a22") == count(ask, system="You are Claude Code. " * 20, messages=ASKED)


@pytest.mark.parametrize("path", ["/v1//chat/completions", "/v1/chat/completions/"])
def test_slashes_too_many_do_no_harm(ask: Ask, path: str) -> None:
    assert ask(path, messages=ASKED, max_tokens=2)[0] == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_usage_counts_all_choices(ask: Ask, stream: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    for path, asked, prompts in (
        ("/v1/chat/completions", {"messages": ASKED, "n": 2}, 1),
        ("/v1/completions", {"prompt": ["Once upon a time", "Once upon a day"], "n": 2}, 2),
    ):
        single: dict[str, Any] = {**asked, "n": 1}
        if prompts == 2:
            single["prompt"] = "Once upon a time"
        one = ask(path, **single, max_tokens=3, ignore_eos=True)[1]["usage"]
        status, answer = ask(path, **asked, max_tokens=3, ignore_eos=True, **options)
        assert status == 200, answer
        found = [chunk["usage"] for chunk in answer if chunk.get("usage")] if stream else [answer["usage"]]
        assert len(found) == 1
        assert found[0]["completion_tokens"] == 6 * prompts
        assert found[0]["prompt_tokens"] == one["prompt_tokens"] * prompts
        if not stream:
            assert [choice["index"] for choice in answer["choices"]] == list(range(2 * prompts))
            assert all(choice["finish_reason"] == "length" for choice in answer["choices"])
            assert "stream" not in answer["object"]
