"""Encodes and decodes the file protocol (stream kind FILES).

Invariants: a file is named by its SHA-256 and a part of it by its number, so no peer can name a path. A length is
checked before memory is allocated for it. Any bytes become frames or raise `BadMessage`.

A tunnel carries frames in both directions: kind, number, length, body. Answers come in the order of the requests.
Compatible changes: a new kind, which is answered with `FileRefusalReason.NOT_UNDERSTOOD`, and a new field at the end of
an array.
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

# Kind, number of the chunk (0 without one), bytes of the body.
HEADER: Final = struct.Struct(">BII")
DIGEST_BYTES: Final = 32
# The largest chunk in a listing; this version offers 4 MiB.
MAX_CHUNK_BYTES: Final = 16 << 20
# A file of 1 TiB in chunks of 4 MiB. Its digests are 8 MiB; a downloader allocates what its file's size needs.
MAX_CHUNKS: Final = 1 << 18
MAX_REQUEST_BYTES: Final = 1 << 10
# Models of one name on one node; files of one model (the largest known has about 50); bytes of the answer.
MAX_MODELS: Final = 8
MAX_FILES: Final = 512
MAX_FOUND_BYTES: Final = 1 << 20
# Tokens; a hundred times the largest known model.
MAX_CONTEXT: Final = 1 << 30
MAX_WAIT_SECONDS: Final = 3600

# A plain file name that is valid on every system.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.gguf")
_LISTED = struct.Struct(">QI")


class FileFrameKind(IntEnum):
    """The kind of a frame; requests are below 16."""

    HAVE = 1
    GET = 2
    FIND = 3
    LISTING = 16
    REFUSAL = 17
    CHUNK = 18
    FOUND = 19


class FileRefusalReason(IntEnum):
    """Why a request is refused."""

    ABSENT = 1  # the file is not here
    PREPARING = 2  # the digests of its chunks are being computed
    NOT_SHARED = 3  # this node uploads nothing
    BUSY = 4  # all upload slots are in use
    CHANGED = 5  # the file changed after it was listed
    NOT_UNDERSTOOD = 6  # a request of a newer version


@dataclass(frozen=True, slots=True)
class HaveRequest:
    """Asks for the file with that SHA-256 (hexadecimal); later `ChunkRequest`s are about it."""

    sha256: str


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Asks for a chunk of that file."""

    chunk: int


@dataclass(frozen=True, slots=True)
class FindRequest:
    """Asks for models of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class ChunkListing:
    """The file is here. `digests`: for each chunk the SHA-256 of the file up to the chunk's end, back to back; the last
    is the file's own."""

    size: int
    chunk_bytes: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class FileRefusal:
    """A refusal. `percent` of the preparation is done; retry in `wait` seconds (0: a retry is useless)."""

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
    """A model that is complete here: its files in order, the projector of a vision model, tokens of context."""

    name: str
    files: tuple[OfferedFile, ...]
    projector: OfferedFile | None = None
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class FoundModels:
    """The models of the requested name."""

    models: tuple[OfferedModel, ...]


@dataclass(frozen=True, slots=True)
class UnknownRequest:
    """A request of a newer version."""

    kind: int


Request = HaveRequest | ChunkRequest | FindRequest
Answer = ChunkListing | FileRefusal | FoundModels


@dataclass(frozen=True, slots=True)
class FileFrame:
    """One frame. `body` is the memory that `place` returned."""

    kind: int
    number: int
    body: memoryview


# Given kind, number and length of a frame, returns memory of that length for its body. Raises BadMessage for an
# unexpected or too long frame.
Place = Callable[[int, int, int], memoryview]


class FrameReader:
    """Splits a stream into frames; holds only the current one, in memory of `place`.

    Either write into `buffer()` and call `advance`, which copies nothing, or call `feed`.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._header = memoryview(bytearray(HEADER.size))
        self._buffer = self._header
        self._filled = 0
        self._kind = self._number = 0

    def buffer(self) -> memoryview:
        """The memory for the next bytes; never empty."""
        return self._buffer[self._filled :]

    def advance(self, count: int) -> FileFrame | None:
        """`count` bytes were written into `buffer()`. Returns the frame that they complete. Raises BadMessage."""
        self._filled += count
        if self._filled < len(self._buffer):
            return None
        if self._buffer is self._header:
            self._kind, self._number, length = HEADER.unpack(self._header)
            buffer = self._place(self._kind, self._number, length)
            self._filled = 0
            if length:
                self._buffer = buffer
                return None
        else:
            buffer = self._buffer
            self._buffer, self._filled = self._header, 0
        return FileFrame(self._kind, self._number, buffer)

    def feed(self, data: bytes | memoryview) -> Iterator[FileFrame]:
        """The frames that `data` completes. Raises BadMessage."""
        rest = memoryview(data)
        while rest:
            buffer = self.buffer()
            taken = min(len(buffer), len(rest))
            buffer[:taken] = rest[:taken]
            rest = rest[taken:]
            if (frame := self.advance(taken)) is not None:
                yield frame


def place_request(kind: int, number: int, length: int) -> memoryview:
    """`place` for the reader of requests."""
    if length > MAX_REQUEST_BYTES:
        raise BadMessage(f"request: more than {MAX_REQUEST_BYTES} bytes")
    return memoryview(bytearray(length))


def header(kind: FileFrameKind, number: int, length: int) -> bytes:
    """The header of a frame with a body of `length` bytes."""
    return HEADER.pack(kind, number, length)


# -- requests


def encode_request(request: Request) -> bytes:
    """The frame of a request. Raises ValueError for a name that is too long."""
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
                raise BadMessage("get: has a body")
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
    """The frame of an answer."""
    match answer:
        case ChunkListing(size, chunk_bytes, digests):
            return _frame(FileFrameKind.LISTING, _LISTED.pack(size, chunk_bytes) + digests)
        case FileRefusal(reason, percent, wait):
            return _frame(FileFrameKind.REFUSAL, msgpack.packb((int(reason), percent, min(wait, MAX_WAIT_SECONDS))))
        case FoundModels(models):
            return _frame(FileFrameKind.FOUND, msgpack.packb([_packed_model(model) for model in models[:MAX_MODELS]]))


def decode_answer(frame: FileFrame) -> Answer:
    """The answer, except a chunk. Raises BadMessage, also for an unknown kind."""
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
            raise BadMessage(f"answer: unexpected kind {frame.kind}")


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
    """The body's length of a listing of `count` chunks."""
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
        raise BadMessage("file's name: not a plain .gguf name")
    return OfferedFile(
        name, f.number(size, "file's size", 1, MAX_NUMBER), f.exactly(sha256, DIGEST_BYTES, "file's digest").hex()
    )


def _read_model(value: Any) -> OfferedModel:
    name, files, projector, context, *_ = f.fields(value, 4, "model")
    found = tuple([_read_file(file) for file in f.items(files, MAX_FILES, "model's files")])
    beside = _read_file(projector) if projector != () else None
    names = {file.name for file in (*found, *((beside,) if beside is not None else ()))}
    if not found or len(names) != len(found) + (beside is not None):
        raise BadMessage("model's files: empty, or a name is repeated")
    return OfferedModel(f.name(name, "model's name"), found, beside, f.number(context, "context", 0, MAX_CONTEXT))


def is_file_name(name: str) -> bool:
    """Whether a file of that name can be offered."""
    return _FILE_NAME.fullmatch(name) is not None


def _frame(kind: FileFrameKind, body: bytes) -> bytes:
    return header(kind, 0, len(body)) + body


_REASONS = frozenset(int(reason) for reason in FileRefusalReason)
