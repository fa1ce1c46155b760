"""Answers of OpenAI's API become those of Ollama's: lines, objects, errors, counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.wire.api.ollama_answer import MAX_CALLS, Moment, OllamaAnswer
from meshllm.wire.api.ollama_errors import ollama_error
from meshllm.wire.api.ollama_models import NEVER, FileFacts, ps_body, show_body, tags_body
from meshllm.wire.api.ollama_request import AnswerForm
from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import DONE, comment, encode_event
from meshllm.wire.api.stream_repair import stream_repair

AT = Moment("2026-01-01T00:00:00.000000Z", 2.0)
USAGE = {"prompt_tokens": 9, "completion_tokens": 4}
TIMINGS = {"prompt_ms": 500.0, "predicted_ms": 1000.25}
DURATIONS = {
    "total_duration": 2_000_000_000,
    "load_duration": 499_750_000,
    "prompt_eval_duration": 500_000_000,
    "eval_duration": 1_000_250_000,
}
COUNTS = {"prompt_eval_count": 9, "eval_count": 4}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    return encode_event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


def lines(form: AnswerForm, *events: bytes) -> list[dict[str, Any]]:
    answer = OllamaAnswer(form, "m:latest")
    written = b"".join([answer.feed(event, AT) for event in events] + [answer.finish(AT)])
    assert answer.ended
    assert written.endswith(b"\n")
    return [json.loads(line) for line in written.splitlines()]


def whole(form: AnswerForm, body: object) -> tuple[int, dict[str, Any]]:
    status, data = OllamaAnswer(form, "m:latest").whole(json.dumps(body).encode(), AT)
    found: dict[str, Any] = json.loads(data)
    return status, found


END = (chunk({}, "stop"), encode_event({"choices": [], "usage": USAGE, "timings": TIMINGS}), DONE)


def test_chat_stream() -> None:
    found = lines(
        AnswerForm.CHAT,
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "hm"}) + chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        *END,
    )
    assert [line["message"] for line in found] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
        {"role": "assistant", "content": ""},
    ]
    assert [line["done"] for line in found] == [False, False, False, True]
    assert {(line["model"], line["created_at"]) for line in found} == {("m:latest", AT.stamp)}
    last = {key: value for key, value in found[-1].items() if key not in ("model", "created_at", "message")}
    assert last == {"done": True, "done_reason": "stop", **DURATIONS, **COUNTS}


def test_generate_and_raw_streams() -> None:
    said = lines(AnswerForm.GENERATE, chunk({"content": "a"}), chunk({}, "length"), DONE)
    assert [line["response"] for line in said] == ["a", ""]
    assert said[-1]["done_reason"] == "length"
    assert "message" not in said[0]
    raw = encode_event({"choices": [{"index": 0, "text": "b", "finish_reason": None}]})
    assert [line["response"] for line in lines(AnswerForm.RAW, raw, DONE)] == ["b", ""]


def test_calls_of_tools_are_whole() -> None:
    def call(index: int, **function: Any) -> dict[str, Any]:
        return {
            "tool_calls": [{"index": index, "id": f"c{index}" if "name" in function else None, "function": function}]
        }

    events = (
        chunk(call(0, name="weather", arguments="")),
        chunk(call(0, arguments='{"city":')),
        chunk(call(0, arguments='"Rome"}')),
        chunk(call(1, name="time", arguments="{}")),
        chunk({}, "tool_calls"),
        DONE,
    )
    found = lines(AnswerForm.CHAT, *events)
    assert found[0]["message"]["tool_calls"] == [
        {"id": "c0", "function": {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}},
        {"id": "c1", "function": {"index": 1, "name": "time", "arguments": {}}},
    ]
    assert (found[1]["done"], found[1]["done_reason"]) == (True, "stop")
    cut = lines(AnswerForm.CHAT, *events[:2], chunk({}, "length"), DONE)
    assert [line.get("done_reason") for line in cut] == ["length"]
    broken = lines(AnswerForm.CHAT, *events[:2], chunk({}, "tool_calls"), DONE)
    assert broken == [{"error": "error parsing tool call: the arguments of 'weather' are not a JSON object"}]


def test_whole_answers() -> None:
    message = {"role": "assistant", "content": "hi", "reasoning_content": "hm"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE, "timings": TIMINGS}
    status, found = whole(AnswerForm.CHAT, body)
    assert status == 200
    assert found["message"] == {"role": "assistant", "content": "hi", "thinking": "hm"}
    assert {**DURATIONS, **COUNTS, "done": True, "done_reason": "stop"}.items() <= found.items()
    assert whole(AnswerForm.GENERATE, body)[1]["response"] == "hi"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    calls = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    answered = whole(AnswerForm.CHAT, calls)[1]["message"]
    assert answered["tool_calls"] == [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]
    call["function"]["arguments"] = "[1]"  # type: ignore[index]
    assert whole(AnswerForm.CHAT, calls)[0] == 500
    assert whole(AnswerForm.RAW, {"choices": [{"text": "b"}]})[1]["response"] == "b"
    loaded = whole(AnswerForm.CHAT_LOADED, {"choices": [{"text": "b"}]})[1]
    assert (loaded["message"]["content"], loaded["done_reason"]) == ("", "load")
    assert "eval_count" not in loaded


def test_embeddings_are_in_the_order_of_their_texts() -> None:
    body = {"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}], "usage": USAGE}
    found = whole(AnswerForm.EMBED, body)[1]
    assert (found["embeddings"], found["prompt_eval_count"]) == ([[1.0], [2.0]], 9)
    assert found["total_duration"] == DURATIONS["total_duration"]
    assert whole(AnswerForm.EMBEDDING, body)[1] == {"embedding": [1.0]}
    assert whole(AnswerForm.EMBED_NOTHING, body)[1]["embeddings"] == []
    assert whole(AnswerForm.EMBEDDING_NOTHING, body)[1] == {"embedding": []}
    odd = {"model": '"embedding":[9],"index":7', "data": [{"embedding": [-1.5e-7, 3]}]}
    assert whole(AnswerForm.EMBED, odd)[1]["embeddings"] == [[-1.5e-7, 3]]


def test_large_batches_of_vectors_are_copied() -> None:
    """More numbers than a parser is given: 2,048 texts of 4,096 numbers."""
    vector = b"[" + b"0.25," * 4095 + b"1]"
    data = b",".join(b'{"index":%d,"embedding":%b}' % (place, vector) for place in range(2048))
    status, found = OllamaAnswer(AnswerForm.EMBED, "m").whole(b'{"data":[' + data + b"]}", AT)
    assert status == 200
    assert found.count(vector) == 2048


@pytest.mark.parametrize("form", AnswerForm)
@pytest.mark.parametrize("body", [{}, [], 7, {"choices": []}, {"choices": [{}]}, {"data": [{"embedding": "x"}]}, None])
def test_answers_of_another_shape_are_errors(form: AnswerForm, body: Any) -> None:
    status, found = whole(form, body)
    assert status == 502 or form.value.endswith(("loaded", "nothing"))
    assert status == 200 or set(found) == {"error"}


def test_errors_in_a_stream_are_its_last_line() -> None:
    error = encode_event({"error": {"message": "out of memory", "code": "x"}}) + DONE
    found = lines(AnswerForm.CHAT, chunk({"content": "a"}), error, chunk({"content": "b"}))
    assert found[1:] == [{"error": "out of memory"}]
    assert set(lines(AnswerForm.CHAT)[0]) == {"error"}
    assert set(lines(AnswerForm.CHAT, b"data: 7\n\n")[0]) == {"error"}


def test_a_comment_is_a_line_without_text() -> None:
    found = lines(AnswerForm.CHAT, comment("waiting"), comment("by x") + chunk({"content": "a"}), *END)
    assert [(line["message"]["content"], line["done"]) for line in found] == [("", False), ("a", False), ("", True)]


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (404, {"message": "Unknown model 'x'. Models here: a.", "code": "model_not_found"},
         (404, "model 'x' not found. Models here: a.")),
        (429, {"message": "full", "code": "overloaded"}, (503, "full")),
        (429, {"message": "wrong keys", "code": "too_many_wrong_keys"}, (429, "wrong keys")),
        (400, {"message": "'max_tokens' must be 'x'.", "code": None}, (400, "'options.num_predict' must be 'x'.")),
        (400, {"message": "'response_format.json_schema.schema.a' is not"}, (400, "'format.a' is not")),
    ],
)  # fmt: skip
def test_errors_have_ollamas_shape(status: int, error: dict[str, Any], expected: tuple[int, str]) -> None:
    found = ollama_error(status, json.dumps({"error": error}).encode(), "x")
    assert (found[0], json.loads(found[1])) == (expected[0], {"error": expected[1]})
    assert json.loads(ollama_error(502, b"<html>")[1]) == {"error": "<html>"}


CARD = {
    "id": "Qwen3-8B-Q4_K_M",
    "max_input_tokens": 8192,
    "mesh": {
        "phase": "serving",
        "loaded": True,
        "size": 5,
        "architecture": "qwen3",
        "input_modalities": ["text", "image"],
    },
}
WANTED = {"id": "wanted", "max_input_tokens": None, "mesh": {"phase": "wanted", "loaded": False}}
FAR = {"id": "far", "max_input_tokens": None, "mesh": {"phase": "available", "loaded": False, "purpose": "embed"}}


def test_models() -> None:
    facts = {"Qwen3-8B-Q4_K_M": FileFacts("Q4_K_M", "ab" * 32, NEVER)}
    listed = tags_body([CARD, WANTED, FAR], facts)["models"]
    assert [model["name"] for model in listed] == ["Qwen3-8B-Q4_K_M", "far"]
    assert (listed[0]["digest"], listed[0]["size"], listed[1]["size"]) == ("ab" * 32, 5, 0)
    assert listed[0]["details"]["parameter_size"] == "8B"
    assert listed[1]["details"] == {**listed[1]["details"], "family": "", "quantization_level": "unknown"}
    running = ps_body([CARD, WANTED, FAR], facts)["models"]
    assert [(model["model"], model["context_length"], model["expires_at"]) for model in running] == [
        ("Qwen3-8B-Q4_K_M", 8192, NEVER)
    ]
    shown = show_body(CARD, facts["Qwen3-8B-Q4_K_M"])
    assert shown["model_info"]["qwen3.context_length"] == 8192
    assert shown["model_info"]["general.parameter_count"] == 8_000_000_000
    assert shown["capabilities"] == ["completion", "tools", "vision"]
    assert show_body(FAR, FileFacts())["capabilities"] == ["embedding"]


# -- any stream

SMALL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=6,
)
CALL = st.fixed_dictionaries(
    {}, optional={"index": st.integers(0, 2) | SMALL, "id": SMALL, "function": st.fixed_dictionaries(
        {}, optional={"name": st.text(max_size=4) | SMALL, "arguments": st.text(max_size=6) | SMALL}) | SMALL},
)  # fmt: skip
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text(max_size=6) | SMALL,
        "reasoning_content": st.text(max_size=6) | SMALL,
        "tool_calls": st.lists(CALL, max_size=2) | SMALL,
    },
)
CHUNK = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"delta": DELTA | SMALL, "finish_reason": SMALL}), max_size=2) | SMALL},
    optional={"usage": SMALL, "timings": SMALL},
)


@given(st.sampled_from(AnswerForm), st.lists(CHUNK | SMALL, max_size=5), st.booleans())
def test_any_stream_ends_with_one_last_line(form: AnswerForm, events: list[Any], repaired: bool) -> None:
    stream = [encode_event(event) for event in events]
    if repaired:
        repair = stream_repair(Api.CHAT, model="m", ident="x", created=1, request={"model": "m"})
        stream = [*(repair.feed(event) for event in stream), repair.finish()]
    found = lines(form, *stream)
    ends = [line.get("done") is True or set(line) == {"error"} for line in found]
    assert ends == [False] * (len(found) - 1) + [True]


@given(st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), min_size=1), st.randoms())
def test_vectors_are_those_of_the_answer(vectors: list[list[float]], rng: Any) -> None:
    data = [{"object": "embedding", "embedding": vector, "index": place} for place, vector in enumerate(vectors)]
    rng.shuffle(data)
    assert whole(AnswerForm.EMBED, {"data": data})[1]["embeddings"] == vectors


@given(st.sampled_from(AnswerForm), CHUNK | SMALL)
def test_any_whole_answer_is_translated_or_an_error(form: AnswerForm, body: Any) -> None:
    status, found = whole(form, body)
    assert (status == 200) != ("error" in found)


@pytest.mark.parametrize("field", ["name", "arguments"])
def test_calls_without_an_end_are_an_error(field: str) -> None:
    """They are kept until they are complete, and a host may be hostile."""
    answer = OllamaAnswer(AnswerForm.CHAT, "m")
    part = chunk({"tool_calls": [{"index": 0, "function": {field: "a" * (1 << 20)}}]})
    written = b"".join(answer.feed(part, AT) for _ in range(17))
    assert answer.ended
    assert set(json.loads(written)) == {"error"}


def test_calls_without_number_are_an_error() -> None:
    answer = OllamaAnswer(AnswerForm.CHAT, "m")
    part = chunk({"tool_calls": [{"function": {"name": "f"}}] * MAX_CALLS})
    assert answer.feed(part, AT) == b""
    assert set(json.loads(answer.feed(part, AT))) == {"error"}


def test_long_error_of_a_host_is_cut() -> None:
    """Patterns look for names in it."""
    answer = OllamaAnswer(AnswerForm.CHAT, "m")
    told = answer.feed(encode_event({"error": {"message": "Unknown model '" * 1000, "code": "model_not_found"}}), AT)
    assert len(told) < 5000
