"""Chat and completion streams: role and end are added, the rest passes unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stream_helpers import chunk, cuts, event, garbage, read, repairer, run

from meshllm.wire.api.routes import Api
from meshllm.wire.api.sse import DONE

ROLE = chunk({"role": "assistant", "content": None})
END = chunk({}, finish="stop") + event({"choices": [], "usage": {"total_tokens": 3}}) + DONE

texts = st.lists(
    st.one_of(
        st.text(), st.sampled_from(["data: [DONE]\n\n", '"finish_reason":"stop"', "[DONE]", "\r\r", 'error: {"'])
    ),
    max_size=6,
)


def words(*content: str, index: int = 0) -> bytes:
    return b"".join(chunk({"content": text}, index=index) for text in content)


def well_formed(out: bytes, choices: int = 1) -> list[tuple[str, Any]]:
    events = read(out)
    assert events[-1][1] == "[DONE]"
    seen: set[int] = set()
    finished: set[int] = set()
    for _, data in events[:-1]:
        for choice in data["choices"]:
            assert (choice["index"] in seen) or choice["delta"]["role"] == "assistant"
            seen.add(choice["index"])
            if choice["finish_reason"]:
                finished.add(choice["index"])
    assert seen == finished == set(range(choices))
    return events


@given(texts, cuts, st.booleans())
@example(["data: [DONE]\n\n"], [], False)
def test_chat_repair_passes_a_valid_stream_unchanged(content: list[str], places: list[int], spaced: bool) -> None:
    stream = ROLE + words(*content) + END
    if spaced:
        stream = stream.replace(b'":', b'": ')
    out, repair = run(Api.CHAT, stream, places)
    assert out == stream
    assert repair.complete
    assert repair.started
    assert not repair.failed


@given(texts.filter(len), cuts)
def test_chat_repair_adds_a_missing_role(content: list[str], places: list[int]) -> None:
    stream = words(*content) + END
    out, _ = run(Api.CHAT, stream, places)
    assert out.endswith(stream)
    events = well_formed(out)
    assert events[0][1]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[0][1]["id"] == "chatcmpl-x"


@given(cuts, st.permutations([0, 1, 2]))
def test_chat_repair_adds_the_role_of_every_choice(places: list[int], order: list[int]) -> None:
    body = b"".join(words("a", index=index) for index in order) + ROLE + words("b", "c", index=order[0])
    stream = body + b"".join(chunk({}, index=index, finish="stop") for index in order) + DONE
    out, _ = run(Api.CHAT, stream, places, n=3)
    well_formed(out, 3)


@given(cuts)
def test_chat_repair_completes_a_stream_that_stops(places: list[int]) -> None:
    for stream in (ROLE + words("a"), ROLE + words("a") + DONE, words("a")[:-2]):
        out, repair = run(Api.CHAT, stream, places)
        well_formed(out)
        assert repair.complete
    out, _ = run(Api.CHAT, ROLE + chunk({}, finish="stop"), places)
    assert out == ROLE + chunk({}, finish="stop") + DONE


@pytest.mark.parametrize(
    "error",
    [
        event({"error": {"code": 500, "message": "boo", "type": "server_error"}}),
        event({"object": "error", "message": "boo", "code": 500}),
        event({"error": "boo"}),
        b'error: {"code":500,"message":"boo","type":"server_error"}\n\n',
    ],
)
@pytest.mark.parametrize("before", [b"", ROLE, ROLE + words("a", "b")])
@pytest.mark.parametrize("after", [b"", DONE])
@given(places=cuts)
def test_chat_repair_ends_errors_in_a_shape_that_clients_raise(
    error: bytes, before: bytes, after: bytes, places: list[int]
) -> None:
    out, repair = run(Api.CHAT, before + error + after, places)
    events = read(out)
    assert out.startswith(before)
    assert events[-2][1]["error"]["message"] == "boo"
    assert events[-1][1] == "[DONE]"
    assert repair.failed
    assert repair.complete
    assert not any(choice["finish_reason"] for _, data in events[:-2] for choice in data.get("choices", []))


def test_chat_repair_drops_a_half_event_of_a_lost_upstream() -> None:
    repair = repairer(Api.CHAT)
    out = repair.feed(ROLE + words("a") + words("b")[:-20]) + repair.fail("engine_died", "The engine died.")
    events = read(out)
    assert out.startswith(ROLE + words("a") + b'data: {"error"')
    assert events[-2][1]["error"] == {
        "message": "The engine died.",
        "type": "server_error",
        "param": None,
        "code": "engine_died",
    }
    assert repair.feed(words("c")) == repair.finish() == repair.fail("x", "y") == b""


def test_chat_repair_does_not_start_with_comments() -> None:
    repair = repairer(Api.CHAT)
    assert repair.feed(b":\n\n") == b":\n\n"
    assert not repair.started
    assert read(repair.finish())[0][1]["error"]["code"] == "upstream_empty"


def test_chat_repair_passes_nothing_after_the_end() -> None:
    out, _ = run(Api.CHAT, ROLE + END + words("late") + b": bye\n\n")
    assert out == ROLE + END


def test_chat_repair_refuses_an_endless_event() -> None:
    repair = repairer(Api.CHAT)
    out = repair.feed(ROLE)
    for _ in range(18):
        out += repair.feed(b"x" * (1 << 20))
    assert repair.failed
    assert read(out)[-2][1]["error"]["code"] == "event_too_large"


@given(cuts)
def test_completions_need_only_their_end(places: list[int]) -> None:
    part = event({"choices": [{"text": "a", "index": 0, "logprobs": None, "finish_reason": None}], "id": "cmpl-7"})
    out, _ = run(Api.COMPLETIONS, part + part, places)
    assert out.startswith(part + part)
    events = read(out)
    assert events[-2][1]["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    assert events[-2][1]["id"] == "cmpl-7"
    assert events[-1][1] == "[DONE]"


@given(st.lists(st.one_of(garbage, st.just(ROLE), texts.map(lambda t: words(*t)), st.just(END)), max_size=8), cuts)
def test_chat_repair_passes_or_refuses_garbage_for_any_cut(parts: list[bytes], places: list[int]) -> None:
    stream = b"".join(parts)
    whole, repair = run(Api.CHAT, stream)
    split, other = run(Api.CHAT, stream, places)
    assert whole == split
    assert (repair.complete, repair.failed, repair.started) == (other.complete, other.failed, other.started)
    assert repair.complete
    assert whole.endswith(DONE)
