"""Server-sent events as bytes: split a stream into events, parse one, write one.

Invariants: no byte is scanned twice; only one event of bounded size is buffered; the result does not depend on how the
stream is cut. Lines end with LF, CR LF or CR; an event ends with a blank line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from meshllm.wire.api import strict_json

MAX_EVENT = 16 * 1024 * 1024
"""Largest event in bytes. A final event may repeat the whole answer."""

_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_END = re.compile(rb"\n\n|\n\r\n|\r\r")
_LINE = re.compile(rb"\r\n|\n|\r")
_BLANK = b"\r\n"
_BLANKS = re.compile(rb"[\r\n]*")


class EventBuffer:
    """Buffers the incomplete end of a stream.

    `overflow` becomes true, for good, when one event exceeds `limit` bytes.
    """

    __slots__ = ("_limit", "_pending", "overflow")

    def __init__(self, limit: int = MAX_EVENT) -> None:
        self._limit = limit
        self._pending = bytearray()
        self.overflow = False

    def take(self, data: bytes) -> bytes:
        """All events that are complete now, in one block (with the blank lines between them)."""
        if self.overflow:
            return b""
        if not self._pending:
            if len(data) > self._limit:
                return self._take_checked(data)
            if data.endswith(b"\n\n"):
                return data
            return self._keep(data, _last_end(data, 0))
        if len(self._pending) + len(data) > self._limit:
            whole = bytes(self._pending) + data
            self._pending.clear()
            return self._take_checked(whole)
        before = len(self._pending)
        self._pending += data
        cut = _last_end(self._pending, max(0, before - 2))
        if not cut:
            return b""
        whole = bytes(self._pending)
        self._pending.clear()
        return self._keep(whole, cut)

    def _keep(self, data: bytes, cut: int) -> bytes:
        """Blank lines after an event are passed on at once, so that the cut makes no difference."""
        cut = skip_blanks(data, cut)
        self._pending += data[cut:]
        return data[:cut]

    def rest(self) -> bytes:
        """The last event of an ended stream that lacks its blank line, completed; or empty."""
        rest = bytes(self._pending).strip(_BLANK)
        self._pending.clear()
        return rest + b"\n\n" if rest else b""

    def _take_checked(self, data: bytes) -> bytes:
        start = skip_blanks(data, 0)
        for match in _END.finditer(data):
            if match.end() <= start:
                continue
            if match.end() - start > self._limit:
                self.overflow = True
                return data[:start]
            start = skip_blanks(data, match.end())
        if len(data) - start > self._limit:
            self.overflow = True
        else:
            self._pending += data[start:]
        return data[:start]


def skip_blanks(data: bytes, start: int) -> int:
    """The first offset at or after `start` that is no line end."""
    match = _BLANKS.match(data, start)
    return match.end() if match else start


def _last_end(data: bytes | bytearray, start: int) -> int:
    """The offset after the last blank line that begins at `start` or later; 0 if there is none."""
    cut = 0
    for end in _ENDS:  # the usual one first: the others are searched only in what is left
        found = data.rfind(end, max(start, cut - 2))
        if found >= 0:
            cut = max(cut, found + len(end))
    return cut


def event_spans(block: bytes) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of the events of a block, without blank lines before them."""
    span = next_event(block, 0)
    while span is not None:
        yield span
        span = next_event(block, span[1])


def next_event(block: bytes, start: int) -> tuple[int, int] | None:
    """Beginning and end of the first event at or after `start`, or None."""
    first = skip_blanks(block, start)
    match = _END.search(block, first)
    return (first, match.end()) if match else None


def split_events(block: bytes) -> Iterator[bytes]:
    """The events of a block, each with its blank line."""
    for start, end in event_spans(block):
        yield block[start:end]


def events_with(block: bytes, mark: bytes) -> Iterator[bytes]:
    """The events of a block that contain `mark`; others are not parsed (a block may have hundreds)."""
    if b"\r" in block:
        yield from (raw for raw in split_events(block) if mark in raw)
        return
    position = block.find(mark)
    while position >= 0:
        before, after = block.rfind(b"\n\n", 0, position), block.find(b"\n\n", position)
        end = after + 2 if after >= 0 else len(block)
        yield block[before + 2 if before >= 0 else 0 : end].lstrip(b"\n")
        position = block.find(mark, end)


def events_backwards(block: bytes) -> Iterator[bytes]:
    """The events of a block, last first, cut out lazily."""
    if b"\r" in block:
        yield from reversed(list(split_events(block)))
        return
    end = len(block)
    while end > 0:
        cut = block.rfind(b"\n\n", 0, end - 2)
        raw = block[cut + 2 if cut >= 0 else 0 : end].lstrip(b"\n")
        if raw:
            yield raw
        end = cut + 2 if cut >= 0 else 0


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event. `data` is None without a data field (a comment); `error`: a field of old llama.cpp servers."""

    name: str
    data: bytes | None
    error: bytes | None
    raw: bytes


def parse_event(raw: bytes) -> SseEvent:
    """Parse one event; unknown fields and comments are ignored, as the specification requires."""
    name, error = b"", None
    lines: list[bytes] = []
    for line in _LINE.split(raw):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            lines.append(value)
        elif field == b"event":
            name = value
        elif field == b"error":
            error = value
    data = b"\n".join(lines) if lines else None
    return SseEvent(name.decode("utf-8", "replace"), data, error, raw)


def encode_event(value: object, name: str = "") -> bytes:
    """An event with `value` as JSON data; `name` becomes the event field. ValueError if it is not JSON."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + strict_json.dumps(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A comment line, which clients ignore, as a sign of progress; line breaks in `text` become spaces."""
    return b": " + _LINE.sub(b" ", text.encode("utf-8", "replace")) + b"\n\n"


PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""Anthropic's keep-alive event, valid anywhere in a `/v1/messages` stream."""


def keepalive(sequence_number: int) -> bytes:
    """OpenAI's keep-alive event of `/v1/responses`, which its service sends although no document has it.

    `sequence_number`: that of the last event, 0 before the first.
    """
    return b'event: keepalive\ndata: {"type":"keepalive","sequence_number":%d}\n\n' % sequence_number


DONE = b"data: [DONE]\n\n"
"""The end of an OpenAI chat or completion stream."""
