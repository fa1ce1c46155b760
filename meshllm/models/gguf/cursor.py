"""Reads the bytes of a GGUF file through a window that moves forwards.

Invariants: the file is hostile input: every count and length is checked before use, memory is bounded, and an invalid
file raises `Damage` with the reason.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

MAX_STRING_BYTES: Final = 64 << 20  # some converters embed a whole tokenizer.json (17-30 MB)
MAX_STRINGS: Final = 4_000_000  # in all lists of a file together; the largest vocabularies are near 1 million
MAX_METADATA_BYTES: Final = 256 << 20

WINDOW: Final = 1 << 20
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
STRING, ARRAY = 8, 9
SCALARS: Final = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
"""Value type number -> struct format."""


class Damage(Exception):
    """A file is invalid; the message has the reason."""


class Cursor:
    """A window that moves forwards through a file. Raises `Damage` at the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._window = b""
        self._start = 0  # offset of the window in the file
        self._at = 0  # position in the window; beyond its end after a skip
        self._strings_left = MAX_STRINGS

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def size(self) -> int:
        return self._size

    def _need(self, count: int) -> None:
        """Make `count` bytes from the current position available in the window."""
        if self._at + count <= len(self._window):
            return
        position = self.position
        if position + count > self._size:
            raise Damage(f"it ends in the middle of the header, at byte {self._size}")
        if position + count > MAX_METADATA_BYTES:
            raise Damage(f"its header is larger than {MAX_METADATA_BYTES >> 20} MiB")
        self._file.seek(position)
        wanted = max(count, WINDOW)
        parts = []
        while wanted > 0 and (part := self._file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self._window, self._start, self._at = b"".join(parts), position, 0
        if len(self._window) < count:
            raise Damage("it became shorter while it was read")

    def take(self, count: int) -> bytes:
        self._need(count)
        self._at += count
        return self._window[self._at - count : self._at]

    def skip(self, count: int) -> None:
        if self.position + count > self._size:
            raise Damage(f"it ends in the middle of the header, at byte {self._size}")
        if self.position + count > MAX_METADATA_BYTES:
            raise Damage(f"its header is larger than {MAX_METADATA_BYTES >> 20} MiB")
        self._at += count

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def scalar(self, kind: int) -> int | float | bool:
        form = SCALARS[kind]
        value: int | float | bool = form.unpack(self.take(form.size))[0]
        return value

    def text(self, limit: int, what: str) -> bytes:
        length = self.u64()
        if length > limit:
            raise Damage(f"{what} is {length} bytes long, the limit is {limit}")
        return self.take(length)

    def begin_strings(self, count: int) -> None:
        """Check that a list of `count` strings is within the bounds."""
        self._strings_left -= count
        if self._strings_left < 0:
            raise Damage(f"it holds more than {MAX_STRINGS} strings")
        if self.position + 8 * count > self._size:
            raise Damage(f"it ends in the middle of the header, at byte {self._size}")

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings: the loop that takes most of the time (about 100,000 strings in an ordinary file)."""
        self.begin_strings(count)
        unpack = _U64.unpack_from
        while count:
            self._need(8)
            window, at, index = self._window, self._at, 0
            try:
                for index in range(count):  # noqa: B007 - how far it came is used below
                    at += unpack(window, at)[0] + 8
                index = count
            except (struct.error, OverflowError):  # the next length is beyond the window
                pass
            if at - len(window) > MAX_STRING_BYTES:
                raise Damage(f"a string in a list is longer than {MAX_STRING_BYTES} bytes")
            count -= index
            self._at = at
        self.skip(0)
