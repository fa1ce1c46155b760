"""What is read in the text of a message."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.board.text import clean_line, clean_name, clean_text, kind_of, mentions
from meshllm.core.board.entries import EntryKind


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain text", "plain text"),
        ("two\r\nlines\rand\u2028more", "two\nlines\nand\nmore"),
        ("\x1b[31;1mred\x1b[0m and \x9b2Jcleared", "red and cleared"),
        ("\x1b]0;a title\x07text\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "textlink"),
        ("\x1bPdevice\x1b\\x\x1bcreset \x1b(B", "xreset "),
        ("null\x00bell\x07back\x08delete\x7f", "nullbellbackdelete"),
        ("right\u202eto left\u2066\u200b\ufeff", "rightto left"),
        ("tags \U000e0041\U000e0042", "tags "),
        ("family 👨\u200d👩\u200d👧 ne\u200cw", "family 👨\u200d👩\u200d👧 ne\u200cw"),
        ("lone \ud800 half", "lone  half"),
        ("Z" + "\u0301" * 100, "Z" + "\u0301" * 8),
        ("tab\tand\nline", "tab\tand\nline"),
    ],
)
def test_what_is_not_seen_is_removed(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text(max_size=300))
def test_clean_text_has_no_control_characters_and_stays_as_it_is(text: str) -> None:
    clean = clean_text(text)
    assert all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in clean if letter not in "\n\t")
    assert clean_text(clean) == clean
    assert "\n" not in clean_line(text)
    clean.encode()


def test_names_are_one_line_without_an_at() -> None:
    assert clean_name(" ann \n lee@host ") == "ann lee-host"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("STATUS: working", EntryKind.STATUS),
        ("  question: why?", EntryKind.QUESTION),
        ("**FINDING**: it is the cache", EntryKind.FINDING),
        ("[TIP] : use -x", EntryKind.TIP),
        ("Done: merged", EntryKind.DONE),
        ("NOTE: x", EntryKind.NOTE),
        ("STATUS working", EntryKind.NOTE),
        ("my STATUS: x", EntryKind.NOTE),
        ("STATUSES: x", EntryKind.NOTE),
        ("CLAIM: x", EntryKind.NOTE),
        ("", EntryKind.NOTE),
    ],
)
def test_kind_by_the_prefix(text: str, kind: EntryKind) -> None:
    assert kind_of(text) is kind


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("@ann can you look? @bob.", ("ann", "bob")),
        ("ask @claude-code@annes-macbook.local.", ("claude-code@annes-macbook.local",)),
        ("(@ann), @all: hello", ("ann", "all")),
        ("ask @claude-code@studio please", ("claude-code@studio",)),
        ("@ann @ANN", ("ann",)),
        ("mail ann@example.com or a+b@c.de", ()),
        ("`@ann` and ```\n@bob\n``` and ``x ` @eve``", ()),
        ("an open ``` @ann", ()),
        ("@types/node and @pytest.fixture() and git@host:x", ()),
        ("https://host/@ann x://y:@z", ()),
        ("@ann's turn, @jörg", ("ann", "jörg")),
        ("@ @- @.x", ()),
        ("@" + "a" * 200, ()),
    ],
)
def test_mentions(text: str, names: tuple[str, ...]) -> None:
    assert mentions(text) == names
