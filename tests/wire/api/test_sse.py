"""Server-sent events: independent of the cut, bounded, and comments cannot inject events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_helpers import cuts, garbage

from meshllm.wire.api.sse import (
    EventBuffer,
    comment,
    encode_event,
    events_backwards,
    events_with,
    parse_event,
    split_events,
)

pieces = st.lists(st.one_of(garbage, st.text(alphabet="ab:\r\n ", max_size=8).map(str.encode)), max_size=12).map(
    b"".join
)


def taken(stream: bytes, places: list[int], limit: int = 1 << 20) -> tuple[bytes, EventBuffer]:
    buffer = EventBuffer(limit)
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return b"".join(buffer.take(stream[a:b]) for a, b in pairwise(edges)), buffer


@given(pieces, cuts)
def test_event_buffer_does_not_depend_on_the_cut(stream: bytes, places: list[int]) -> None:
    whole, buffer = taken(stream, [])
    split, other = taken(stream, places)
    assert whole == split
    assert buffer.rest() == other.rest()
    assert stream.startswith(whole)


@given(pieces)
def test_event_buffer_byte_by_byte_equals_all_at_once(stream: bytes) -> None:
    assert taken(stream, list(range(len(stream))))[0] == taken(stream, [])[0]


@given(pieces, cuts, st.integers(min_value=1, max_value=30))
def test_event_buffer_overflow_does_not_depend_on_the_cut(stream: bytes, places: list[int], limit: int) -> None:
    whole, buffer = taken(stream, [], limit)
    split, other = taken(stream, places, limit)
    assert (whole, buffer.overflow) == (split, other.overflow)


def test_event_buffer_is_bounded() -> None:
    buffer = EventBuffer(100)
    for _ in range(1000):
        assert buffer.take(b"x" * 10) == b""
    assert buffer.overflow
    assert buffer.rest() == b""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_event_buffer_understands_every_line_end(end: str) -> None:
    raw = f"event: e{end}data: a{end}: note{end}data: b{end}{end}".encode()
    assert taken(raw, [3])[0] == raw
    event = parse_event(raw)
    assert (event.name, event.data) == ("e", b"a\nb")


def test_event_buffer_completes_a_stream_without_its_blank_line() -> None:
    buffer = EventBuffer()
    assert buffer.take(b"data: a\n\ndata: b") == b"data: a\n\n"
    assert buffer.rest() == b"data: b\n\n"
    assert buffer.rest() == b""


@given(st.text())
def test_comment_stays_one_comment(text: str) -> None:
    raw = comment(text)
    assert list(split_events(raw)) == [raw]
    assert parse_event(raw).data is None
    assert raw.startswith(b": ")


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none())))
def test_encoded_event_is_one_event(value: dict[str, object]) -> None:
    raw = encode_event(value, "name")
    assert list(split_events(raw)) == [raw]
    assert parse_event(raw).name == "name"


LINES = st.lists(
    st.sampled_from(
        [b"data: a", b'data: {"finish_reason":"stop"}', b": comment", b"event: x\ndata: y", b"\n", b"data: \r"]
    ),
    max_size=12,
)


@given(LINES, st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n\n\n"]))
def test_events_with_finds_what_splitting_finds(lines: list[bytes], end: bytes) -> None:
    block = b"".join(line + end for line in lines)
    events = [raw.strip() for raw in split_events(block)]
    assert [raw.strip() for raw in events_backwards(block)] == events[::-1]
    assert [raw.strip() for raw in events_with(block, b"stop")] == [raw for raw in events if b"stop" in raw]
