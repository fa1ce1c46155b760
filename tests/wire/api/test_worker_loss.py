"""An engine reports a lost worker; its caller gets advice."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from stream_helpers import check_messages, check_responses, chunk, cuts, event, read, typed

from meshllm.wire.api.routes import Api
from meshllm.wire.api.stream_repair import StreamRepair, stream_repair
from meshllm.wire.api.worker_loss import worker_loss_message

FAILED = {"code": 500, "message": "Compute error.", "type": "server_error"}
NAMED = f"event: error\ndata: {json.dumps(FAILED, separators=(',', ':'))}\n\n".encode()
TEXT = {"choices": [{"text": "a", "index": 0, "logprobs": None, "finish_reason": None}], "id": "cmpl-7"}
BEGIN = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 1}}
# For each API the beginning of an answer, and the engine's error.
STREAMS = {
    Api.CHAT: (chunk({"role": "assistant", "content": None}) + chunk({"content": "a"}), event({"error": FAILED})),
    Api.COMPLETIONS: (event(TEXT), event({"error": FAILED})),
    Api.MESSAGES: (
        typed("message_start", message=BEGIN)
        + typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
        NAMED,
    ),
    Api.RESPONSES: (
        typed("response.created", response={"id": "resp_1"}) + typed("response.output_text.delta", delta="a"),
        NAMED,
    ),
}


def run(
    api: Api, stream: bytes, places: list[int], *, shared: bool = True
) -> tuple[list[tuple[str, Any]], StreamRepair]:
    """The repaired stream, cut at `places`."""
    repair = stream_repair(api, model="m", ident="x", created=1, request={"model": "m"}, shared=shared)
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    out = b"".join(repair.feed(stream[start:end]) for start, end in pairwise(edges)) + repair.finish()
    return read(out), repair


def error_in(api: Api, events: list[tuple[str, Any]]) -> dict[str, Any]:
    """The error of a stream."""
    if api is Api.RESPONSES:
        check_responses(events)
        return dict(next(data for name, data in events if name == "error"))
    if api is Api.MESSAGES:
        check_messages(events)
        return dict(events[-1][1]["error"])
    assert events[-1][1] == "[DONE]"
    return dict(events[-2][1]["error"])


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("api", STREAMS, ids=lambda api: api.value)
@given(places=cuts)
@example(places=[])
def test_worker_loss_is_reported_with_advice(api: Api, begun: bool, places: list[int]) -> None:
    before, error = STREAMS[api]
    events, repair = run(api, (before if begun else b"") + error, places)
    found = error_in(api, events)
    assert (found["code"], found["message"]) == ("upstream_lost", worker_loss_message("m"))
    assert "Retry" in found["message"]
    assert (repair.worker_lost, repair.failed, repair.complete) == (True, True, True)
    assert "Compute error" not in str(events)
    assert ('"a"' in json.dumps(events)) == begun, "what came before it is passed on"


@pytest.mark.parametrize("api", STREAMS, ids=lambda api: api.value)
@given(places=cuts)
def test_worker_loss_of_an_engine_without_workers_is_passed_on(api: Api, places: list[int]) -> None:
    events, repair = run(api, b"".join(STREAMS[api]), places, shared=False)
    assert error_in(api, events)["message"] == "Compute error."
    assert (repair.worker_lost, repair.failed) == (False, True)


@pytest.mark.parametrize("error", [{**FAILED, "message": "out of memory"}, {**FAILED, "code": 400}])
@given(places=cuts)
def test_other_errors_are_no_worker_loss(error: dict[str, Any], places: list[int]) -> None:
    events, repair = run(Api.CHAT, STREAMS[Api.CHAT][0] + event({"error": error}), places)
    assert error_in(Api.CHAT, events)["message"] == error["message"]
    assert not repair.worker_lost


@given(places=cuts)
def test_generated_text_is_no_worker_loss(places: list[int]) -> None:
    said = '{"error":{"code":500,"message":"Compute error.","type":"server_error"}}'
    stream = STREAMS[Api.CHAT][0] + chunk({"content": f"data: {said}"}) + chunk({"content": said}, finish="stop")
    events, repair = run(Api.CHAT, stream + b"data: [DONE]\n\n", places)
    assert (repair.failed, repair.worker_lost) == (False, False)
    assert [data["choices"][0]["delta"].get("content") for _, data in events[-3:-1]] == [f"data: {said}", said]


def test_worker_loss_names_the_node_if_known() -> None:
    assert "(1a2b is lost to the split: it stopped)" in worker_loss_message(
        "m", "1a2b is lost to the split: it stopped"
    )
