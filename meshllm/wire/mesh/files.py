"""What two nodes say to each other about model files, as bytes and back.

Law: a file is named by its sha256 and a part of it by its number, nothing else; whoever asks names no path, and whoever
answers cannot make the other write one. Every length is bounded before room is made for it. Any bytes at all become
frames or `BadMessage`.

A tunnel of this kind carries frames both ways: kind, number, length of the body, body. Requests may be sent before
earlier ones are answered; answers come in their order. How it may grow: new kinds, which are answered with
`Reason.NOT_UNDERSTOOD`; new fields at the end of an array.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgpack

from meshllm.core.records import MAX_NUMBER
from meshllm.errors import BadMessage
from meshllm.wire.mesh import fields as f

# Kind, number of the chunk (0 where there is none), bytes of the body.
HEADER: Final = struct.Struct(">BII")
DIGEST_BYTES: Final = 32
# The largest chunk anybody may offer; this version's own are 4 MiB.
MAX_CHUNK_BYTES: Final = 16 << 20
# A file of 1 TiB in chunks of 4 MiB; its digests are 8 MiB, which a taker makes room for only if its file is so large.
MAX_CHUNKS: Final = 1 << 18
MAX_REQUEST_BYTES: Final = 1 << 10
# Models that go by one name, on one node; parts of one model (the largest known today have some 50); what that takes.
MAX_MODELS: Final = 8
MAX_FILES: Final = 512
MAX_FOUND_BYTES: Final = 1 << 20
# Tokens; a hundred times what any model knows of today.
MAX_CONTEXT: Final = 1 << 30
MAX_WAIT_SECONDS: Final = 3600

# One plain name in one folder: what is written under it lies where the taker wants it, on any system.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.gguf")
_LISTED = struct.Struct(">QI")


class FileFrameKind(IntEnum):
    """What a frame is. Requests are below 16."""

    HAVE = 1
    GET = 2
    FIND = 3
    LISTING = 16
    REFUSAL = 17
    CHUNK = 18
    FOUND = 19


class FileRefusalReason(IntEnum):
    """Why a request is not answered with what was asked for."""

    ABSENT = 1  # no such file here
    PREPARING = 2  # it is here, and its chunks' digests are being computed
    NOT_SHARED = 3  # this node gives nothing away
    BUSY = 4  # it gives to as many others as it can
    CHANGED = 5  # the file is not any more what was listed
    NOT_UNDERSTOOD = 6  # a request of a newer version


@dataclass(frozen=True, slots=True)
class HaveRequest:
    """Whether the file of that sha256 (hexadecimal) is there; later `Get`s are about it."""

    sha256: str


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """A chunk of the file last asked for."""

    chunk: int


@dataclass(frozen=True, slots=True)
class FindRequest:
    """Which models go by that name."""

    name: str


@dataclass(frozen=True, slots=True)
class ChunkListing:
    """The file is there: its size, bytes of a chunk, and for each chunk the sha256 of all bytes up to its end, back to
    back; so the last is the file's own."""

    size: int
    chunk_bytes: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class FileRefusal:
    """Why not. `percent` of the preparation is done; it is worth asking again in `wait` seconds (0: it is not)."""

    reason: FileRefusalReason
    percent: int = 0
    wait: int = 0


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """A file's plain name, size in bytes and sha256 (hexadecimal)."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A model that is there whole: its files in order, what a model that sees has beside them, tokens of context."""

    name: str
    files: tuple[OfferedFile, ...]
    projector: OfferedFile | None = None
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class FoundModels:
    """Models of the name that was asked for."""

    models: tuple[OfferedModel, ...]


@dataclass(frozen=True, slots=True)
class UnknownRequest:
    """A request that only a newer version understands."""

    kind: int


Request = HaveRequest | ChunkRequest | FindRequest
Answer = ChunkListing | FileRefusal | FoundModels


@dataclass(frozen=True, slots=True)
class FileFrame:
    """One frame. The body is the room that `place` made for it."""

    kind: int
    number: int
    body: memoryview


# Given kind, number and length of a frame: room of exactly that length for its body. Raises BadMessage for a frame that
# is not to come, or is too long.
Place = Callable[[int, int, int], memoryview]


class FrameReader:
    """Cuts a stream into frames without holding more than the one that is coming, whose room is somebody else's.

    Either bytes are put into `room()` and told of with `advance`, so that nothing is copied, or given to `feed`.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._header = memoryview(bytearray(HEADER.size))
        self._room = self._header
        self._filled = 0
        self._kind = self._number = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._room[self._filled :]

    def advance(self, count: int) -> FileFrame | None:
        """`count` bytes were put into the room. The frame that is complete with them. Raises BadMessage."""
        self._filled += count
        if self._filled < len(self._room):
            return None
        if self._room is self._header:
            self._kind, self._number, length = HEADER.unpack(self._header)
            room = self._place(self._kind, self._number, length)
            self._filled = 0
            if length:
                self._room = room
                return None
        else:
            room = self._room
            self._room, self._filled = self._header, 0
        return FileFrame(self._kind, self._number, room)

    def feed(self, data: bytes | memoryview) -> Iterator[FileFrame]:
        """The frames that are complete with `data`. Raises BadMessage."""
        rest = memoryview(data)
        while rest:
            room = self.room()
            taken = min(len(room), len(rest))
            room[:taken] = rest[:taken]
            rest = rest[taken:]
            if (frame := self.advance(taken)) is not None:
                yield frame


def place_request(kind: int, number: int, length: int) -> memoryview:
    """For the `Reader` of who is asked."""
    if length > MAX_REQUEST_BYTES:
        raise BadMessage(f"request: more than {MAX_REQUEST_BYTES} bytes")
    return memoryview(bytearray(length))


def header(kind: FileFrameKind, number: int, length: int) -> bytes:
    """What stands before a body of `length` bytes."""
    return HEADER.pack(kind, number, length)


# -- requests


def encode_request(request: Request) -> bytes:
    """The whole frame. Raises ValueError for a name that is too long."""
    match request:
        case HaveRequest(sha256):
            return _frame(FileFrameKind.HAVE, bytes.fromhex(sha256))
        case ChunkRequest(chunk):
            return header(FileFrameKind.GET, chunk, 0)
        case FindRequest(name):
            body = name.encode()
            if len(body) > MAX_REQUEST_BYTES:
                raise ValueError(f"a name of {len(body)} bytes")
            return _frame(FileFrameKind.FIND, body)


def decode_request(frame: FileFrame) -> Request | UnknownRequest:
    """The request. Raises BadMessage."""
    match frame.kind:
        case FileFrameKind.HAVE:
            return HaveRequest(f.exactly(bytes(frame.body), DIGEST_BYTES, "file's digest").hex())
        case FileFrameKind.GET:
            if frame.body:
                raise BadMessage("get: it has a body")
            return ChunkRequest(f.number(frame.number, "chunk", 0, MAX_CHUNKS - 1))
        case FileFrameKind.FIND:
            try:
                return FindRequest(f.name(str(frame.body, "utf-8"), "model's name"))
            except UnicodeDecodeError as error:
                raise BadMessage("model's name: not UTF-8") from error
        case _:
            return UnknownRequest(frame.kind)


# -- answers


def encode_answer(answer: Answer) -> bytes:
    """The whole frame."""
    match answer:
        case ChunkListing(size, chunk_bytes, digests):
            return _frame(FileFrameKind.LISTING, _LISTED.pack(size, chunk_bytes) + digests)
        case FileRefusal(reason, percent, wait):
            return _frame(FileFrameKind.REFUSAL, msgpack.packb((int(reason), percent, min(wait, MAX_WAIT_SECONDS))))
        case FoundModels(models):
            return _frame(FileFrameKind.FOUND, msgpack.packb([_packed_model(model) for model in models[:MAX_MODELS]]))


def decode_answer(frame: FileFrame) -> Answer:
    """The answer, if it is none of a chunk. Raises BadMessage, also for a kind that nobody asked for."""
    match frame.kind:
        case FileFrameKind.LISTING:
            return _listing(frame.body)
        case FileFrameKind.REFUSAL:
            reason, percent, wait, *_ = f.fields(_unpacked(frame, 8), 3, "refusal")
            known = f.number(reason, "reason", 0, 255)
            return FileRefusal(
                FileRefusalReason(known) if known in _REASONS else FileRefusalReason.ABSENT,
                f.number(percent, "percent", 0, 100),
                f.number(wait, "seconds to wait", 0, MAX_WAIT_SECONDS),
            )
        case FileFrameKind.FOUND:
            models = f.items(_unpacked(frame, MAX_FILES), MAX_MODELS, "models")
            return FoundModels(tuple([_read_model(model) for model in models]))
        case _:
            raise BadMessage(f"answer: of kind {frame.kind}")


def _listing(body: memoryview) -> ChunkListing:
    if len(body) < _LISTED.size:
        raise BadMessage("listing: too short")
    size, chunk_bytes = _LISTED.unpack_from(body)
    f.number(size, "file's size", 1, MAX_NUMBER)
    f.number(chunk_bytes, "bytes of a chunk", 1, MAX_CHUNK_BYTES)
    count = -(-size // chunk_bytes)
    if count > MAX_CHUNKS:
        raise BadMessage(f"listing: more than {MAX_CHUNKS} chunks")
    digests = f.exactly(bytes(body[_LISTED.size :]), count * DIGEST_BYTES, "chunks' digests")
    return ChunkListing(size, chunk_bytes, digests)


def listing_bytes(count: int) -> int:
    """The length of a listing's body for so many chunks."""
    return _LISTED.size + count * DIGEST_BYTES


def _unpacked(frame: FileFrame, most: int) -> tuple[Any, ...]:
    return f.unpack(bytes(frame.body), max_text=256, max_bytes=DIGEST_BYTES, max_items=most)


def _packed_file(file: OfferedFile) -> tuple[Any, ...]:
    return (file.name, file.size, bytes.fromhex(file.sha256))


def _packed_model(model: OfferedModel) -> tuple[Any, ...]:
    projector = _packed_file(model.projector) if model.projector is not None else ()
    return (model.name, [_packed_file(file) for file in model.files], projector, model.context_length)


def _read_file(value: Any) -> OfferedFile:
    name, size, sha256, *_ = f.fields(value, 3, "file")
    if type(name) is not str or not _FILE_NAME.fullmatch(name):
        raise BadMessage("file's name: not a plain name that ends in .gguf")
    return OfferedFile(
        name, f.number(size, "file's size", 1, MAX_NUMBER), f.exactly(sha256, DIGEST_BYTES, "file's digest").hex()
    )


def _read_model(value: Any) -> OfferedModel:
    name, files, projector, context, *_ = f.fields(value, 4, "model")
    found = tuple([_read_file(file) for file in f.items(files, MAX_FILES, "model's files")])
    beside = _read_file(projector) if projector != () else None
    names = {file.name for file in (*found, *((beside,) if beside is not None else ()))}
    if not found or len(names) != len(found) + (beside is not None):
        raise BadMessage("model's files: none, or two of one name")
    return OfferedModel(f.name(name, "model's name"), found, beside, f.number(context, "context", 0, MAX_CONTEXT))


def is_file_name(name: str) -> bool:
    """Whether a file of that name can be offered."""
    return _FILE_NAME.fullmatch(name) is not None


def _frame(kind: FileFrameKind, body: bytes) -> bytes:
    return header(kind, 0, len(body)) + body


_REASONS = frozenset(int(reason) for reason in FileRefusalReason)
