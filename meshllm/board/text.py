"""What is read in a message's text: its kind and the names that it addresses; what is not seen is removed. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from meshllm.core.board.entries import EntryKind
from meshllm.wire.mesh.fields import UNPRINTABLE

# Sequences that terminals obey (ECMA-48): CSI, OSC and other strings up to their end, then escapes of two characters.
_TERMINAL: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,16}[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]{0,16}[0-~]?"
)
# Zero-width joiners are parts of letters and emoji; other format characters hide or reorder what people see.
_KEPT: Final = "\n\t\u200c\u200d"
_DROPPED: Final = ("Cc", "Cf", "Cs", "Co", "Cn")
# More combining marks on one letter cover the lines around it.
_MAX_MARKS: Final = 8

_KIND: Final = re.compile(r"\s*[*_`\[]{0,3}(NOTE|STATUS|QUESTION|FINDING|TIP|DONE)[*_`\]]{0,3}\s?:", re.IGNORECASE)
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|``[^\n]*?``|`[^`\n]*`", re.DOTALL)
# Not in e-mail addresses, paths, package names (@scope/name) and calls (@decorator()).
_MENTION: Final = re.compile(
    r"(?<![\w.+%/:@\\-])@(?P<name>\w(?:[\w.-]{0,62}\w)?(?:@\w(?:[\w.-]{0,62}\w)?)?)(?![\w@/(]|[.-]\w)"
)


def clean_text(text: str) -> str:
    """The text without terminal sequences and characters that are not seen; lines end with a line feed."""
    if text.isascii() and text.isprintable():
        return text
    text = _TERMINAL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub("[\x0b\x0c\x85\u2028\u2029]", "\n", text)
    if text.isascii():
        return "".join(letter for letter in text if letter.isprintable() or letter in _KEPT)
    kept, marks = [], 0
    for letter in text:
        category = unicodedata.category(letter)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks <= _MAX_MARKS and (letter in _KEPT or category not in _DROPPED):
            kept.append(letter)
    return "".join(kept)


def clean_line(text: str) -> str:
    """As `clean_text`, on one line, with single blanks; what the header of an entry may have."""
    return " ".join(UNPRINTABLE.sub(" ", clean_text(text)).split())


def clean_name(text: str) -> str:
    """The name of a writer on one line. An @ in it would pass for the name of a node."""
    return clean_line(text).replace("@", "-")


def kind_of(text: str) -> EntryKind:
    """The kind that a text begins with, as in `STATUS: ...`; else a note."""
    match = _KIND.match(text)
    return EntryKind[match[1].upper()] if match is not None else EntryKind.NOTE


def mentions(text: str) -> tuple[str, ...]:
    """The names after an @ in the text, each once, but for e-mail addresses and code."""
    return different_names(match["name"] for match in _MENTION.finditer(_CODE.sub(" ", text)))


def different_names(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, whatever its letter case."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.casefold(), name)
    return tuple(found.values())
