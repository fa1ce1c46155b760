"""The judge of the APIs' fuzzer: valid answers pass, and each kind of fault is seen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts.fuzzing import body_grammar as paths
from scripts.fuzzing.body_judge import Answer, Wrong, kind_of_answer

CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a"}, "logprobs": None}
CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [CHOICE]}
CHUNK = {
    **CHAT,
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}],
}
ERROR = {"message": "No.", "type": "invalid_request_error", "param": "n", "code": "invalid_parameter"}
ANTHROPIC = {"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}


LINE = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "a"}}
LAST = {**LINE, "done": True, "done_reason": "stop"}


def whole(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, {"content-type": "application/json", **headers}, json.dumps(value).encode())


def stream(*events: Any, end: str = "data: [DONE]\n\n") -> Answer:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
    return Answer(200, {"content-type": "text/event-stream"}, text.encode())


def ndjson(*lines: Any, end: str = "\n") -> Answer:
    text = "\n".join(json.dumps(line) for line in lines) + end
    return Answer(200, {"content-type": "application/x-ndjson"}, text.encode())


def test_valid_answers_have_a_kind() -> None:
    assert kind_of_answer(paths.CHAT, whole(CHAT), streams=False) == (paths.CHAT, "200", "content", "stop")
    found = kind_of_answer(paths.CHAT, whole({"error": ERROR}, 400), streams=True)
    assert found == (paths.CHAT, "400", "invalid_parameter", "n", "No.")
    assert kind_of_answer(paths.CHAT, stream(CHUNK), streams=True)[:4] == (paths.CHAT, "200", "stream", "stop")
    assert kind_of_answer(paths.CHAT, stream({"error": ERROR}), streams=True)[3] == "error"
    assert kind_of_answer(paths.MESSAGES, whole(ANTHROPIC, 400), streams=False)[1] == "400"
    busy = whole({"error": ERROR}, 503, **{"retry-after": "1"})
    assert kind_of_answer(paths.CHAT, busy, streams=False)[1] == "503"
    ollama = kind_of_answer(paths.OLLAMA_CHAT, ndjson({**LINE, "done": False}, LAST), streams=True)
    assert ollama == (paths.OLLAMA_CHAT, "200", "stream", "stop", "content")
    failed = kind_of_answer(paths.OLLAMA_CHAT, ndjson({**LINE, "done": False}, {"error": "no"}), streams=True)
    assert failed[3:5] == ("error", "")
    assert kind_of_answer(paths.OLLAMA_CHAT, whole({"error": "no"}, 400), streams=True)[1] == "400"
    assert kind_of_answer(paths.OLLAMA_EMBED, whole({"model": "m", "embeddings": []}), streams=False)[1] == "200"


@pytest.mark.parametrize(
    ("path", "answer", "streams"),
    [
        (paths.CHAT, whole({"error": ERROR}, 500), False),
        (paths.CHAT, whole({"error": ERROR}, 503), False),
        (paths.CHAT, whole({"error": {"message": "No."}}, 400), False),
        (paths.CHAT, whole({"error": {**ERROR, "message": "[json.exception.type_error.302] x"}}, 400), False),
        (paths.CHAT, whole({"error": {**ERROR, "param": 1}}, 400), False),
        (paths.CHAT, Answer(400, {}, b"<html>"), False),
        (paths.MESSAGES, whole({"error": ERROR}, 400), False),
        (paths.CHAT, whole([CHAT]), False),
        (paths.CHAT, whole({**CHAT, "choices": [{**CHOICE, "finish_reason": "eos"}]}), False),
        (paths.CHAT, whole(CHAT), True),
        (paths.CHAT, stream(CHUNK, end=""), True),
        (paths.CHAT, stream(CHUNK, end="data: [DO"), True),
        (paths.CHAT, stream({**CHUNK, "choices": []}), True),
        (paths.CHAT, stream({"error": "x"}), True),
        (paths.RESPONSES, stream({"type": "response.created"}), True),
        (paths.MESSAGES, stream({"type": "message_stop"}, end=""), True),
        (paths.OLLAMA_CHAT, ndjson({**LINE, "done": False}), True),
        (paths.OLLAMA_CHAT, ndjson(LAST, LAST), True),
        (paths.OLLAMA_CHAT, ndjson(LAST, end=""), True),
        (paths.OLLAMA_CHAT, ndjson({"error": "no"}, LAST), True),
        (paths.OLLAMA_CHAT, ndjson({**LAST, "response": "a"}), True),
        (paths.OLLAMA_CHAT, whole({"error": ERROR}, 400), True),
        (paths.OLLAMA_CHAT, whole({"error": "no"}, 500), True),
        (paths.OLLAMA_EMBED, whole({"model": "m", "embeddings": [1]}), False),
    ],
)
def test_faults_are_seen(path: str, answer: Answer, streams: bool) -> None:
    with pytest.raises(Wrong):
        kind_of_answer(path, answer, streams=streams)
