"""Bytes of the blackboard: what is written is read, anything else is refused; signatures are checked by the daemon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.board import entries as b
from meshllm.core.board import messages as m
from meshllm.core.board.chain import ChainId
from meshllm.core.board.entries import EntryHeader, EntryKind, body_hash
from meshllm.core.ids import MeshId, NodeId
from meshllm.errors import BadMessage
from meshllm.wire.mesh import board, codec
from tests.core.board.made_entries import author, entry, without_text
from tests.saved_board import verify_entry

printable = st.text(
    alphabet=st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\xad"), max_size=16
)
printable = printable.filter(lambda text: not board.f.UNPRINTABLE.search(text))
ids = st.binary(min_size=16, max_size=16)
headers = st.builds(
    EntryHeader,
    ids.map(MeshId), st.binary(min_size=32, max_size=32).map(NodeId), st.integers(1, 1 << 50), st.integers(1, 1 << 50),
    st.integers(1, 1 << 50), st.sampled_from([*range(6), 100]), printable, printable, printable,
    st.one_of(st.just(b""), ids), st.lists(printable, max_size=8).map(tuple), printable, st.integers(0, 14400),
    st.one_of(st.just(b""), ids), st.integers(0, 4096), ids,
)  # fmt: skip


@given(headers)
def test_header_is_read_as_it_was_written(header: EntryHeader) -> None:
    assert board.decode_header(board.encode_header(header)) == header


def test_fields_of_a_newer_version_are_skipped() -> None:
    one = entry(1)
    longer = msgpack.packb([*msgpack.unpackb(one.data), "later"])
    assert board.decode_header(longer) == one.header


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 2), (1, bytes(15)), (2, bytes(33)), (3, 0), (4, 0), (4, 1.0), (5, -1), (5, True), (6, 256), (7, "r" * 129),
        (7, "a\nb"), (8, "n" * 65), (8, "\u202e"), (9, b"bytes"), (10, b"12"), (11, ["n"] * 9), (11, [7]), (11, "name"),
        (12, "s" * 201), (13, 14401), (14, bytes(17)), (15, 4097), (16, bytes(8)), (6, 16), (6, 19),
    ],
)  # fmt: skip
def test_value_out_of_bounds_is_refused(place: int, value: Any) -> None:
    found = list(msgpack.unpackb(entry(1).data))
    found[place] = value
    with pytest.raises(BadMessage):
        board.decode_header(msgpack.packb(found))


def test_own_header_out_of_bounds_is_an_error_here() -> None:
    with pytest.raises(ValueError, match="room"):
        board.encode_header(replace(entry(1).header, room="r" * 200))


def test_largest_header_fits() -> None:
    header = replace(
        entry(1).header,
        room="r" * b.MAX_ROOM_BYTES,
        name="n" * 64,
        program="p" * 64,
        to=("t" * 64,) * b.MAX_RECIPIENTS,
        subject="s" * 200,
        reply_to=bytes(16),
        target=bytes(16),
        kind=EntryKind.CLAIM,
        seconds=1,
    )
    assert board.decode_header(board.encode_header(header)) == header


MESSAGES: list[Any] = [
    m.BoardDigest(1, bytes(8)),
    m.BoardDifference(2, (0, 3), (m.ChainState(ChainId(author(1), 5), 9, 2, True),), reply=True),
    m.BoardWant((m.ChainRange(ChainId(author(1), 5), 0, 0), m.ChainRange(ChainId(author(1), 5), 3, 9))),
    m.BoardEntries((entry(1, first_seen=0), without_text(entry(2, first_seen=0))), (bytes(158),), push=True, end=True),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_are_read_as_they_were_written(message: Any) -> None:
    assert codec.decode_message(codec.encode_message(message), verify_entry) == message


def test_forged_entry_is_refused() -> None:
    forged = replace(entry(1, first_seen=0), signature=bytes(64))
    with pytest.raises(BadMessage, match="signature"):
        codec.decode_message(codec.encode_message(m.BoardEntries((forged,))), verify_entry)


@pytest.mark.parametrize(
    "altered",
    [
        ["text of another", None],
        ["text", b"texT"],
        ["text", b"text and more"],
        ["text", b"\xff\xfe\xfd\xfc"],
    ],
)
def test_altered_text_is_refused(altered: list[Any]) -> None:
    one = entry(1, body="text")
    given_text = altered[1] if altered[1] is not None else altered[0].encode()
    with pytest.raises(BadMessage, match="text"):
        board.read_entry(one.data, one.signature, given_text)


def test_text_that_is_no_utf8_is_refused_though_its_author_signed_it() -> None:
    raw = b"\xff\xfe"
    header = replace(entry(1).header, body_bytes=2, body_hash=body_hash(raw))
    data = board.encode_header(header)
    with pytest.raises(BadMessage, match="UTF-8"):
        board.read_entry(data, bytes(64), raw)


@pytest.mark.parametrize(
    "payload",
    [
        (24, 0, b"\x01", b"", False),
        (24, 1, b"\x00\x00", b"", False),
        (24, 9, b"", b"", False),
        (24, 0, b"", bytes(57), False),
        (24, 0, b"", bytes(56), False),
        (24, 0, b"", b"", 1),
        (25, bytes(31)),
        (25, bytes(32) + (1).to_bytes(8) + (5).to_bytes(8) + (4).to_bytes(8)),
        (25, (bytes(32) + (1).to_bytes(8) + (4).to_bytes(8) + (5).to_bytes(8)) * 2),
        (26, [[b"", bytes(64), None]], [], False, False),
        (26, [], [bytes(157)], False, False),
        (26, [[]] * 33, [], False, False),
        (23, 0, bytes(5)),
    ],
)
def test_malformed_messages_are_refused(payload: tuple[Any, ...]) -> None:
    with pytest.raises(BadMessage):
        codec.parse_message(msgpack.packb(payload))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        header = board.decode_header(data)
    except BadMessage:
        return
    assert board.decode_header(board.encode_header(header)) == header
