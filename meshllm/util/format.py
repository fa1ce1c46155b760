"""Bytes, rates, durations and foreign text as people read them. Pure; sizes are decimal (1 GB = 10**9 bytes)."""

from __future__ import annotations

import re

_PLAIN_WORD = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def gigabytes(size: int) -> str:
    """A memory or file size in GB: "5.1 GB", "0.14 GB", and below 10 MB "3.2 MB"."""
    if size < 10**7:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e9:.2f} GB"


def megabytes(size: int) -> str:
    """A size while it grows, in a unit that does not change in one transfer: "98.4 MB", from 10 GB on "10.2 GB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 10_000_000_000 else f"{size / 1e6:,.1f} MB"


def short_size(size: int, *, about: bool = False) -> str:
    """A size in two or three digits for a column: "98 MB", "1.9 GB"; "~405 GB" with `about`."""
    if size < 995_000_000:
        text = f"{size / 1e6:.0f} MB"
    else:
        text = f"{size / 1e9:.0f} GB" if size >= 9_950_000_000 else f"{size / 1e9:.1f} GB"
    return f"~{text}" if about else text


def duration(seconds: float) -> str:
    """A duration in its two largest units: "3.4 s", "1 min 5 s", "2 h 10 min", "3 d 4 h"."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s"
    return whole_duration(round(seconds))


def whole_duration(seconds: float) -> str:
    """The same in whole units, for a display that is refreshed: "0 min 3 s"."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def rough_duration(seconds: float) -> str:
    """A duration in its largest unit, for sentences: "5 s", "3 min", "2 h", "4 d"."""
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size or (unit == "min" and whole >= size):
            return f"{whole // size} {unit}"
    return f"{whole} s"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 node", "2 nodes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shell_word(text: str) -> str:
    """`text` as one word of a shell command that people copy; in quotes where that is needed."""
    return text if _PLAIN_WORD.fullmatch(text) else "'" + text.replace("'", "'\"'\"'") + "'"


def printable(text: str) -> str:
    """A name from another machine, safe for a terminal: at most 200 characters, "?" for each unprintable one."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


def printable_json(text: str) -> str:
    r"""JSON `text` with each unprintable character beyond ASCII as `\uXXXX`. JSON requires that for ASCII only."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(letter if letter in "\n\t\r" or letter.isprintable() else _json_escape(letter) for letter in text)


def _json_escape(letter: str) -> str:
    code = ord(letter)
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\u{0xD800 + (code - 0x10000 >> 10):04x}\\u{0xDC00 + (code - 0x10000 & 0x3FF):04x}"


def printable_message(text: str) -> str:
    """A message of any length, safe for a terminal: a space for each unprintable character, line ends included."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
