"""Kinds of entries: their numbers are signed and stored, so they never change."""

from __future__ import annotations

from meshllm.core.board.entries import TEXT_KINDS, EntryKind


def test_numbers_of_kinds_are_fixed() -> None:
    assert {kind.name: kind.value for kind in EntryKind} == {
        "NOTE": 0, "STATUS": 1, "QUESTION": 2, "FINDING": 3, "TIP": 4, "DONE": 5,
        "CLAIM": 16, "RENEW": 17, "RELEASE": 18, "RETRACT": 19,
    }  # fmt: skip


def test_kinds_with_a_text_are_the_first_numbers() -> None:
    assert [kind.value for kind in TEXT_KINDS] == list(range(6))
