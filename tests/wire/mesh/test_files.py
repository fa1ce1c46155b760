"""The file protocol round-trips for any cut; any other bytes raise `BadMessage`."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.errors import BadMessage
from meshllm.wire.mesh import files as w
from tests.wire.mesh.mesh_strategies import names, numbers

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
file_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,40}\.gguf", fullmatch=True)
offered_files = st.builds(w.OfferedFile, file_names, st.integers(1, (1 << 53) - 1), digests)
offered_models = st.builds(
    w.OfferedModel,
    names,
    st.lists(offered_files, min_size=1, max_size=4, unique_by=lambda file: file.name).map(tuple),
    st.none(),
    st.integers(0, w.MAX_CONTEXT),
)
requests = st.one_of(
    st.builds(w.HaveRequest, digests),
    st.builds(w.ChunkRequest, st.integers(0, w.MAX_CHUNKS - 1)),
    st.builds(w.FindRequest, names),
)
listings = st.integers(1, 9).flatmap(
    lambda count: st.builds(
        w.ChunkListing,
        st.integers(4096 * (count - 1) + 1, 4096 * count),
        st.just(4096),
        st.binary(min_size=32 * count, max_size=32 * count),
    )
)
refusals = st.builds(
    w.FileRefusal, st.sampled_from(w.FileRefusalReason), st.integers(0, 100), st.integers(0, w.MAX_WAIT_SECONDS)
)
answers = st.one_of(listings, refusals, st.builds(w.FoundModels, st.lists(offered_models, max_size=3).map(tuple)))
FILE = w.OfferedFile("model.gguf", 10, "ab" * 32)


def place(kind: int, number: int, length: int) -> memoryview:
    """Memory for any frame, within the size of a test."""
    if length > 1 << 16:
        raise BadMessage("too long")
    return memoryview(bytearray(length))


def frames(data: bytes, step: int = 0) -> list[tuple[int, int, bytes]]:
    """The frames in `data`, fed in steps of `step` bytes (0: all at once)."""
    reader = w.FrameReader(place)
    pieces = [data[at : at + step] for at in range(0, len(data), step)] if step else [data]
    return [(frame.kind, frame.number, bytes(frame.body)) for piece in pieces for frame in reader.feed(piece)]


def one(data: bytes) -> w.FileFrame:
    (frame,) = w.FrameReader(place).feed(data)
    return frame


@given(requests)
def test_file_request_round_trips(request: w.Request) -> None:
    encoded = w.encode_request(request)
    (frame,) = w.FrameReader(w.place_request).feed(encoded)
    assert w.decode_request(frame) == request


@given(answers)
def test_file_answer_round_trips(answer: w.Answer) -> None:
    assert w.decode_answer(one(w.encode_answer(answer))) == answer


def test_vision_model_round_trips() -> None:
    model = w.OfferedModel("Model", (FILE,), w.OfferedFile("mmproj.gguf", 3, "cd" * 32), 4096)
    assert w.decode_answer(one(w.encode_answer(w.FoundModels((model,))))) == w.FoundModels((model,))


@given(st.lists(st.one_of(requests, answers), min_size=1, max_size=4), st.integers(1, 50))
def test_frame_reader_does_not_depend_on_the_cut(messages: list[w.Request | w.Answer], step: int) -> None:
    encoded = [
        w.encode_request(message)
        if isinstance(message, w.HaveRequest | w.ChunkRequest | w.FindRequest)
        else w.encode_answer(message)
        for message in messages
    ]
    data = b"".join(encoded)
    assert frames(data, step) == frames(data, 1) == frames(data)
    assert len(frames(data)) == len(messages)


@given(st.binary(max_size=300), st.integers(1, 40))
def test_frame_reader_refuses_or_reads_garbage_alike_for_any_cut(data: bytes, step: int) -> None:
    def heard(step: int) -> object:
        found = []
        reader = w.FrameReader(w.place_request)
        try:
            for piece in [data[at : at + step] for at in range(0, len(data), step)] if step else [data]:
                found += [(frame.kind, frame.number, bytes(frame.body)) for frame in reader.feed(piece)]
        except BadMessage as error:
            return found, error.message
        return found, ""

    assert heard(step) == heard(0)


@given(st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.binary(max_size=200))
def test_decode_accepts_or_refuses_any_frame(kind: int, number: int, body: bytes) -> None:
    frame = w.FileFrame(kind, number, memoryview(body))
    for read in (w.decode_request, w.decode_answer):
        with contextlib.suppress(BadMessage):
            read(frame)


packed = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=5), st.binary(max_size=40)),
    lambda inner: st.lists(inner, max_size=5),
)


@given(st.sampled_from([w.FileFrameKind.REFUSAL, w.FileFrameKind.FOUND]), st.lists(packed, max_size=5))
def test_decode_answer_accepts_or_refuses_any_msgpack(kind: w.FileFrameKind, value: list[object]) -> None:
    with contextlib.suppress(BadMessage):
        w.decode_answer(w.FileFrame(kind, 0, memoryview(msgpack.packb(value))))


def test_frame_reader_allocates_only_for_expected_frames() -> None:
    asked: list[int] = []

    def never(kind: int, number: int, length: int) -> memoryview:
        asked.append(length)
        raise BadMessage("too long")

    with pytest.raises(BadMessage):
        list(w.FrameReader(never).feed(w.HEADER.pack(w.FileFrameKind.CHUNK, 0, (1 << 32) - 1)))
    assert asked == [(1 << 32) - 1]
    with pytest.raises(BadMessage):
        list(w.FrameReader(w.place_request).feed(w.HEADER.pack(w.FileFrameKind.FIND, 0, w.MAX_REQUEST_BYTES + 1)))


def test_frame_reader_fills_the_given_memory() -> None:
    room = memoryview(bytearray(5))
    reader = w.FrameReader(lambda kind, number, length: room)
    head = w.header(w.FileFrameKind.CHUNK, 7, 5)
    reader.buffer()[:] = head
    assert reader.advance(len(head)) is None
    assert len(reader.buffer()) == 5
    reader.buffer()[:2] = b"he"
    assert reader.advance(2) is None
    reader.buffer()[:] = b"llo"
    frame = reader.advance(3)
    assert frame == w.FileFrame(w.FileFrameKind.CHUNK, 7, room)
    assert bytes(room) == b"hello"
    assert len(reader.buffer()) == w.HEADER.size


@pytest.mark.parametrize(
    "name",
    ["../up.gguf", "a/b.gguf", "a\\b.gguf", ".gguf", ".hidden.gguf", "model.bin", "x" * 300 + ".gguf", "a\0.gguf", ""],
)
def test_file_name_must_be_plain(name: str) -> None:
    model = w.OfferedModel("Model", (w.OfferedFile(name, 1, "ab" * 32),))
    assert not w.is_file_name(name)
    with pytest.raises(BadMessage):
        w.decode_answer(one(w.encode_answer(w.FoundModels((model,)))))


@pytest.mark.parametrize(
    "listing",
    [
        w.ChunkListing(0, 4096, b""),
        w.ChunkListing(5000, 4096, bytes(32)),
        w.ChunkListing(5000, 0, bytes(64)),
        w.ChunkListing(5000, w.MAX_CHUNK_BYTES + 1, bytes(32)),
        w.ChunkListing(1 << 50, 1, bytes(64)),
    ],
)
def test_listing_must_match_its_file(listing: w.ChunkListing) -> None:
    with pytest.raises(BadMessage):
        w.decode_answer(w.FileFrame(w.FileFrameKind.LISTING, 0, memoryview(w.encode_answer(listing))[w.HEADER.size :]))


@pytest.mark.parametrize(
    "body",
    [
        ("Model", [], (), 0),
        ("Model", [("a.gguf", 1, bytes(32)), ("a.gguf", 2, bytes(32))], (), 0),
        ("Model", [("a.gguf", 1, bytes(32))], ("a.gguf", 1, bytes(32)), 0),
        ("", [("a.gguf", 1, bytes(32))], (), 0),
        ("bad\x1b[31m", [("a.gguf", 1, bytes(32))], (), 0),
        ("Model", [("a.gguf", 0, bytes(32))], (), 0),
        ("Model", [("a.gguf", 1, bytes(31))], (), 0),
        ("Model", [("a.gguf", 1, bytes(32))], None, 0),
        ("Model", [("a.gguf", 1, bytes(32))], (), -1),
    ],
)
def test_offered_model_must_be_consistent(body: tuple[object, ...]) -> None:
    with pytest.raises(BadMessage):
        w.decode_answer(w.FileFrame(w.FileFrameKind.FOUND, 0, memoryview(msgpack.packb([body]))))


def test_newer_requests_differ_from_invalid_ones() -> None:
    assert w.decode_request(w.FileFrame(9, 0, memoryview(b"whatever"))) == w.UnknownRequest(9)
    refusal = msgpack.packb((77, 0, 0, "a new field"))
    assert w.decode_answer(w.FileFrame(w.FileFrameKind.REFUSAL, 0, memoryview(refusal))) == w.FileRefusal(
        w.FileRefusalReason.ABSENT
    )
    with pytest.raises(BadMessage):
        w.decode_answer(w.FileFrame(w.FileFrameKind.CHUNK, 0, memoryview(b"")))


def test_largest_listing_and_models_are_accepted() -> None:
    count = w.MAX_CHUNKS
    listing = w.ChunkListing(count * 4096, 4096, bytes(32 * count))
    assert len(w.encode_answer(listing)) == w.HEADER.size + w.listing_bytes(count)
    most = (1 << 53) - 1
    files = tuple(w.OfferedFile(f"{number:05}{'x' * 195}.gguf", most, "ab" * 32) for number in range(w.MAX_FILES))
    found = w.FoundModels((w.OfferedModel("m" * 256, files),) * w.MAX_MODELS)
    body = memoryview(w.encode_answer(found))[w.HEADER.size :]
    assert len(body) <= w.MAX_FOUND_BYTES
    assert w.decode_answer(w.FileFrame(w.FileFrameKind.FOUND, 0, body)) == found
    with pytest.raises(ValueError, match="a name of"):
        w.encode_request(w.FindRequest("x" * 2000))
