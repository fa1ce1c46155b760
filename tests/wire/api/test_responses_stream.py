"""Streams of /v1/responses have every event and field of OpenAI's types; valid ones pass unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from stream_helpers import REQUEST, check_responses, cuts, event, garbage, read, repairer, run, typed

from meshllm.wire.api.routes import Api
from meshllm.wire.api.stream_repair import repair_response

SDK: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
SHORT = {"id": "resp_1", "object": "response", "status": "in_progress"}
BEGIN = typed("response.created", response=SHORT) + typed("response.in_progress", response=SHORT)


def added(kind: str, ident: str, **fields: Any) -> bytes:
    return typed("response.output_item.added", item={"id": ident, "type": kind, "status": "in_progress", **fields})


def text_of(ident: str, *deltas: str) -> bytes:
    part = typed("response.content_part.added", item_id=ident, part={"type": "output_text", "text": ""})
    return part + b"".join(typed("response.output_text.delta", item_id=ident, delta=text) for text in deltas)


def message(ident: str, text: str) -> dict[str, Any]:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    return {"type": "message", "status": "completed", "id": ident, "content": [part], "role": "assistant"}


def call(ident: str, arguments: str) -> dict[str, Any]:
    names = {"call_id": f"call_{ident}", "name": "f"}
    return {"id": ident, "type": "function_call", "status": "completed", "arguments": arguments, **names}


def done(*items: dict[str, Any], tokens: int = 9) -> bytes:
    """The engine's last event."""
    out = b""
    for item in items:
        if item["type"] == "message":
            text = item["content"][0]["text"]
            out += typed("response.output_text.done", item_id=item["id"], text=text)
            out += typed("response.content_part.done", item_id=item["id"], part=item["content"][0])
        out += typed("response.output_item.done", item=item)
    usage = {"input_tokens": 5, "output_tokens": tokens, "total_tokens": 5 + tokens}
    usage["input_tokens_details"] = {"cached_tokens": 1}  # type: ignore[assignment]
    response = {**SHORT, "created_at": 7, "status": "completed", "model": "m", "output": list(items), "usage": usage}
    return out + typed("response.completed", response=response)


PLAIN = BEGIN + added("message", "msg_1", content=[], role="assistant") + text_of("msg_1", "Hel", "lo")
PLAIN += done(message("msg_1", "Hello"))


def good(out: bytes) -> list[tuple[str, Any]]:
    """Well-formed, and strictly valid for OpenAI's types."""
    events = read(out)
    check_responses(events)
    for _, data in events:
        SDK.validate_python(data)
        if "response" in data:
            Response.model_validate(data["response"])
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    return events


@given(cuts)
def test_responses_repair_adds_every_field_to_the_engines_stream(places: list[int]) -> None:
    out, repair = run(Api.RESPONSES, PLAIN, places)
    events = good(out)
    assert "".join(data["delta"] for name, data in events if name == "response.output_text.delta") == "Hello"
    final = events[-1][1]["response"]
    assert events[-1][0] == "response.completed"
    assert final["instructions"] == "Be kind."
    assert final["id"] == "resp_1"
    assert final["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
    assert repair.complete
    assert not repair.failed


@given(st.lists(st.one_of(st.text(max_size=5), st.sampled_from(['"', "\\", "\n\n", '"}'])), max_size=6), cuts)
def test_responses_fast_path_equals_the_slow_path(texts: list[str], places: list[int]) -> None:
    stream = BEGIN + added("message", "msg_1", content=[], role="assistant") + text_of("msg_1", "a", *texts)
    stream += done(message("msg_1", "a" + "".join(texts)))
    longer = stream.replace(b',"delta":"', b', "delta":"')  # not in the engine's format, so every event is parsed
    assert run(Api.RESPONSES, stream, places)[0] == run(Api.RESPONSES, longer, places)[0]


@given(cuts)
def test_responses_repair_passes_valid_events_unchanged(places: list[int]) -> None:
    proper = run(Api.RESPONSES, PLAIN)[0]
    assert run(Api.RESPONSES, proper, places)[0] == proper


@given(cuts)
def test_responses_repair_sends_created_first_and_once(places: list[int]) -> None:
    without = PLAIN.removeprefix(BEGIN)
    many = b"".join(BEGIN + part + b"\n\n" for part in without.split(b"\n\n") if part)
    for stream in (without, many):
        names = [name for name, _ in good(run(Api.RESPONSES, stream, places)[0])]
        assert names[:2] == ["response.created", "response.in_progress"]
        assert names.count("response.created") == names.count("response.in_progress") == 1


@given(cuts)
def test_responses_repair_begins_and_ends_every_item(places: list[int]) -> None:
    reasoning = {"id": "rs_1", "summary": [], "type": "reasoning", "encrypted_content": ""}
    final = {**reasoning, "content": [{"text": "hm", "type": "reasoning_text"}]}
    stream = BEGIN + added("reasoning", "rs_1", summary=[], content=[], encrypted_content="")
    stream += typed("response.reasoning_text.delta", delta="hm", item_id="rs_1")
    stream += added("message", "msg_1", content=[], role="assistant") + text_of("msg_1", "Hi")
    stream += added("function_call", "fc_1", arguments="", call_id="call_fc_1", name="f")
    stream += typed("response.function_call_arguments.delta", delta='{"x":', item_id="fc_1")
    stream += done(final, message("msg_1", "Hi there"), call("fc_1", '{"x":1}'), call("fc_2", "{}"))
    events = good(run(Api.RESPONSES, stream, places)[0])
    said: dict[str, str] = {}
    for name, data in events:
        if name.endswith(".delta"):
            said[data["item_id"]] = said.get(data["item_id"], "") + data["delta"]
    assert said == {"rs_1": "hm", "msg_1": "Hi there", "fc_1": '{"x":1}', "fc_2": "{}"}
    names = [name for name, _ in events]
    assert names.count("response.function_call_arguments.done") == 2
    assert names.count("response.reasoning_text.done") == 1
    assert names.count("response.output_item.done") == 4


def test_responses_repair_marks_a_truncated_answer() -> None:
    events = good(run(Api.RESPONSES, PLAIN, max_output_tokens=9)[0])
    assert events[-1][0] == "response.incomplete"
    assert events[-1][1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert good(run(Api.RESPONSES, PLAIN, max_output_tokens=10)[0])[-1][0] == "response.completed"


@given(cuts)
def test_responses_repair_completes_a_stream_that_stops(places: list[int]) -> None:
    stream = PLAIN[: PLAIN.index(b"event: response.output_text.done")]
    final = good(run(Api.RESPONSES, stream, places)[0])[-1]
    assert final[0] == "response.completed"
    assert final[1]["response"]["output"][0]["content"][0]["text"] == "Hello"


@pytest.mark.parametrize(
    "error",
    [
        event({"error": {"code": 500, "message": "boo", "type": "server_error"}}),
        event({"type": "error", "code": "bad", "message": "boo", "param": None, "sequence_number": 3}, "error"),
        b'error: {"code":500,"message":"boo","type":"server_error"}\n\n',
    ],
)
@given(places=cuts)
def test_responses_repair_turns_errors_into_a_failed_response(error: bytes, places: list[int]) -> None:
    for before in (b"", BEGIN, BEGIN + added("message", "msg_1") + text_of("msg_1", "a")):
        out, repair = run(Api.RESPONSES, before + error, places)
        events = good(out)
        assert (events[-2][0], events[-2][1]["message"]) == ("error", "boo")
        assert events[-1][0] == "response.failed"
        assert events[-1][1]["response"]["error"]["message"] == "boo"
        assert repair.failed


def test_responses_repair_fails_the_response_of_a_lost_upstream() -> None:
    repair = repairer(Api.RESPONSES)
    events = good(repair.feed(PLAIN[: len(PLAIN) // 2]) + repair.fail("engine_died", "The engine died."))
    assert events[-2][1]["code"] == "engine_died"
    assert repair.feed(PLAIN) == repair.finish() == b""


def test_responses_repair_accepts_a_deeply_nested_request() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    good(run(Api.RESPONSES, PLAIN, metadata={"a": deep})[0])


idents = st.sampled_from(["a", "b"])
anything = st.one_of(
    garbage,
    st.sampled_from(
        [BEGIN, typed("response.queued", response=SHORT), done(message("a", "x")), typed("response.created")]
    ),
    st.builds(added, st.sampled_from(["message", "reasoning", "function_call", "web_search_call"]), idents),
    st.builds(text_of, idents, st.text(max_size=3)),
    st.builds(
        lambda kind, fields: typed(f"response.{kind}", **fields),
        st.sampled_from(
            [
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "reasoning_text.delta",
                "reasoning_summary_text.delta",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "refusal.delta",
                "failed",
                "unheard_of",
            ]
        ),
        st.fixed_dictionaries(
            {},
            optional={
                "item_id": idents,
                "output_index": st.integers(-1, 2),
                "content_index": st.integers(-1, 1),
                "delta": st.text(max_size=3),
                "text": st.text(max_size=3),
                "arguments": st.text(max_size=3),
                "sequence_number": st.integers(-1, 9),
            },
        ),
    ),
    st.builds(lambda item: typed("response.output_item.done", item=item), st.builds(call, idents, st.text(max_size=3))),
    st.builds(
        lambda item: typed("response.output_item.done", item=item), st.builds(message, idents, st.text(max_size=3))
    ),
)


@given(st.lists(anything, max_size=10), cuts)
def test_responses_repair_orders_any_events_for_any_cut(parts: list[bytes], places: list[int]) -> None:
    stream = b"".join(parts)
    whole, repair = run(Api.RESPONSES, stream)
    split, other = run(Api.RESPONSES, stream, places)
    assert whole == split
    assert (repair.complete, repair.failed, repair.started) == (True, other.failed, other.started)
    check_responses(read(whole))


@pytest.mark.parametrize(
    ("field", "given_value", "shown"),
    [
        ("user", True, None),
        ("user", "u", "u"),
        ("previous_response_id", {}, None),
        ("metadata", {"a": "b", "c": 1}, {"a": "b"}),
        ("metadata", "x", {}),
        ("truncation", 3, "disabled"),
        ("reasoning", {"effort": "enormous", "summary": "auto"}, {"summary": "auto"}),
        ("text", {"verbosity": "x"}, {"format": {"type": "text"}}),
        (
            "text",
            {"format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}},
            {"format": {"type": "json_schema", "name": "n", "schema": {}}},
        ),
        ("tools", [{"type": "mcp"}, {"type": "custom", "name": "f"}], [{"type": "custom", "name": "f"}]),
        ("tool_choice", {"type": "f"}, {"type": "function", "name": "f"}),
        ("tool_choice", {"type": "allowed_tools", "tools": []}, {"type": "allowed_tools", "tools": [], "mode": "auto"}),
    ],
)
def test_a_parameter_is_repeated_in_its_documented_type_or_not_at_all(field: str, given_value: Any, shown: Any) -> None:
    request = {**REQUEST, field: given_value}
    full = repair_response(Api.RESPONSES, {"output": []}, model="m", ident="q", created=1, request=request)
    Response.model_validate(full)
    assert full[field] == shown


def test_repair_body_fills_in_missing_fields() -> None:
    body = {
        "id": "resp_1",
        "output": [message("msg_1", "Hi"), call("fc_1", "{}")],
        "status": "completed",
        "usage": {"input_tokens": 1, "output_tokens": 100, "total_tokens": 101},
    }
    full = repair_response(Api.RESPONSES, body, model="m", ident="q", created=1, request=REQUEST)
    Response.model_validate(full)
    assert full["output"] == body["output"]
    assert full["status"] == "incomplete"
    assert repair_response(Api.RESPONSES, full, model="m", ident="q", created=2, request={}) == full
