"""Requests of `/v1/completions` and `/v1/embeddings`, and their answers in OpenAI's shape."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from meshllm.core.serving.template_traits import ANY_TEMPLATE
from meshllm.core.serving.vector_traits import VectorTraits
from meshllm.wire.api.completion_request import Echo, ListedLogprobs
from meshllm.wire.api.embedding_request import ShortVectors
from meshllm.wire.api.engine_request import prepare
from meshllm.wire.api.prepared import UNCHANGED, Prepared
from meshllm.wire.api.refusal import Refusal, RequestRefused
from meshllm.wire.api.routes import Api
from meshllm.wire.api.several_choices import SummedUsage, assembled, events_in


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "b"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 4, "n": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "prompt": [1, 2]}, "echo"),
        ({"logprobs": 50}, "logprobs"),
        ({"logprobs": "1"}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    found = prepare(Api.COMPLETIONS, {"prompt": "a", **fields})
    assert isinstance(found, Refusal)
    assert found.param == param


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"suffix": ""}, {"logprobs": None}, {"echo": False}])
def test_fields_that_ask_for_nothing_are_no_fault(fields: dict[str, Any]) -> None:
    assert isinstance(prepare(Api.COMPLETIONS, {"prompt": "a", **fields}), Prepared)


def test_the_engines_own_field_for_logprobs_gives_them_in_the_apis_shape() -> None:
    found = prepare(Api.COMPLETIONS, {"prompt": "a", "n_probs": 2})
    assert isinstance(found, Prepared)
    assert found.translator is not None
    translator = found.translator("x")
    answer = translator.whole({"choices": [{"text": "a", "logprobs": {"content": [{"token": "a", "logprob": -1.0}]}}]})
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a"]


def test_logprobs_are_listed_by_kind_through_a_stream() -> None:
    tops = [{"token": "b", "logprob": -2.0}, {"token": "c", "logprob": -3.0}]
    body = {
        "choices": [
            {
                "index": 0,
                "text": "ab",
                "logprobs": {"content": [{"token": "ab", "logprob": -1.0, "top_logprobs": tops}]},
            }
        ]
    }
    translator = ListedLogprobs(1)
    first, second = (next(iter(translator.event(body)))["choices"][0]["logprobs"] for _ in range(2))
    assert first == {"tokens": ["ab"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -2.0}], "text_offset": [0]}
    assert second["text_offset"] == [2]
    assert ListedLogprobs(0).whole(body)["choices"][0]["logprobs"]["top_logprobs"] is None


def test_echo_is_once_for_each_choice() -> None:
    echo = Echo(["x", "y"])
    events = [event for index in (1, 0, 1) for event in echo.event({"choices": [{"index": index, "text": "a"}]})]
    assert [event["choices"][0]["text"] for event in events] == ["ya", "xa", "a"]


def test_usage_of_several_choices_is_summed_once() -> None:
    def usage(index: int, cached: int) -> list[dict[str, Any]]:
        counts = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": cached}}
        return [{"choices": [{"index": index, "finish_reason": "stop"}]}, {"choices": [], "usage": counts}]

    summed = SummedUsage(4, 2)
    events = [
        new
        for index, cached in ((0, 0), (1, 6), (2, 1), (3, 6))
        for one in usage(index, cached)
        for new in summed.event(one)
    ]
    found = [event["usage"] for event in events if "usage" in event]
    assert found == [
        {
            "prompt_tokens": 14,
            "completion_tokens": 12,
            "total_tokens": 26,
            "prompt_tokens_details": {"cached_tokens": 1},
        }
    ]
    assert len(events) == 5  # four ends and the usage


def test_a_stream_is_assembled_into_an_answer() -> None:
    def choice(index: int, finish: str | None = None, **delta: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": finish}

    def call(**given: Any) -> list[dict[str, Any]]:
        return [{"index": 0, **given}]

    ended = {**choice(1, "stop", content="b"), "logprobs": {"content": [1]}}
    chunks = [
        [choice(1, role="assistant", content=None)],
        [choice(1, content="a"), choice(0, tool_calls=call(id="c", function={"name": "f", "arguments": "{"}))],
        [choice(0, "tool_calls", tool_calls=call(function={"arguments": "}"})), ended],
    ]
    events = [json.dumps({"object": "chat.completion.chunk", "choices": choices}) for choices in chunks]
    stream = "".join(f"data: {event}\n\n: comment\n\n" for event in ["null", *events, "[DONE]"]).encode()
    body = assembled(events_in(stream))
    assert body["object"] == "chat.completion"
    first, second = body["choices"]
    assert first["message"]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")
    assert (second["message"]["content"], second["logprobs"]) == ("ab", {"content": [1]})
    with pytest.raises(ValueError, match="chunk"):
        assembled(events_in(b'data: {"other":1}\n\n'))


def test_an_error_in_an_assembled_stream_is_the_answer() -> None:
    stream = b'data: {"choices":[]}\n\ndata: {"error":{"message":"lost","code":503,"type":"unavailable_error"}}\n\n'
    with pytest.raises(RequestRefused) as refused:
        assembled(events_in(stream))
    assert (refused.value.refusal.status, refused.value.refusal.message) == (503, "lost")


@pytest.mark.parametrize("dimensions", [0, -1, "8", True, 1 << 20])
def test_dimensions_without_meaning_are_refused(dimensions: Any) -> None:
    found = prepare(Api.EMBEDDINGS, {"input": "a", "dimensions": dimensions})
    assert isinstance(found, Refusal)
    assert found.param == "dimensions"


NESTED = VectorTraits(3, nested=True)


def test_dimensions_cut_vectors_to_the_length_1() -> None:
    found = prepare(Api.EMBEDDINGS, {"input": "a", "dimensions": 2}, ANY_TEMPLATE, NESTED)
    assert isinstance(found, Prepared)
    assert found.translator is not None
    body: dict[str, Any] = {"data": [{"index": 0, "embedding": [3.0, 4.0, 5.0]}]}
    assert found.translator("x").whole(body)["data"][0]["embedding"] == [0.6, 0.8]
    raw = base64.b64encode(struct.pack("<3f", 3.0, 4.0, 5.0)).decode()
    short = ShortVectors(2, NESTED).whole({"data": [{"embedding": raw}]})["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(short)) == pytest.approx((0.6, 0.8))
    assert ShortVectors(3, NESTED).whole(body)["data"][0]["embedding"] == [3.0, 4.0, 5.0]
    with pytest.raises(RequestRefused, match="3 numbers"):
        ShortVectors(4, NESTED).whole(body)


@pytest.mark.parametrize("nested", [False, None])
def test_dimensions_of_a_model_that_was_not_trained_for_it_are_refused(nested: bool | None) -> None:
    body = {"input": "a", "dimensions": 2}
    found = prepare(Api.EMBEDDINGS, body, ANY_TEMPLATE, VectorTraits(3, nested))
    assert isinstance(found, Refusal)
    assert (found.param, found.status) == ("dimensions", 400)
    assert "3 numbers" in found.message
    # Where the size is not known before, the answer shows it.
    late = prepare(Api.EMBEDDINGS, body, ANY_TEMPLATE, VectorTraits(0, nested))
    assert isinstance(late, Prepared)
    assert late.translator is not None
    with pytest.raises(RequestRefused, match="3 numbers"):
        late.translator("x").whole({"data": [{"embedding": [1.0, 2.0, 3.0]}]})
    same = prepare(Api.EMBEDDINGS, {**body, "dimensions": 3}, ANY_TEMPLATE, VectorTraits(3, nested))
    assert isinstance(same, Prepared)
    larger = prepare(Api.EMBEDDINGS, {**body, "dimensions": 4}, ANY_TEMPLATE, VectorTraits(3, True))
    assert isinstance(larger, Refusal)


def test_embeddings_without_dimensions_are_unchanged() -> None:
    assert prepare(Api.EMBEDDINGS, {"input": ["a"], "encoding_format": "base64"}) is UNCHANGED
