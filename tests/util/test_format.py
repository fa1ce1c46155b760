"""Sizes, durations and foreign text as people read them."""

from __future__ import annotations

import pytest

from meshllm.util.format import (
    counted,
    duration,
    gigabytes,
    megabytes,
    printable,
    printable_message,
    short_size,
    whole_duration,
)


@pytest.mark.parametrize(
    ("size", "texts"),
    [
        (0, ("0.0 MB", "0.0 MB", "0 MB")),
        (3_200_000, ("3.2 MB", "3.2 MB", "3 MB")),
        (140_000_000, ("0.14 GB", "140.0 MB", "140 MB")),
        (5_100_000_000, ("5.1 GB", "5,100.0 MB", "5.1 GB")),
        (405_000_000_000, ("405.0 GB", "405.0 GB", "405 GB")),
    ],
)
def test_sizes_are_decimal(size: int, texts: tuple[str, str, str]) -> None:
    assert (gigabytes(size), megabytes(size), short_size(size)) == texts


@pytest.mark.parametrize(
    ("seconds", "exact", "whole"),
    [
        (3.44, "3.4 s", "0 min 3 s"),
        (59.7, "1 min 0 s", "0 min 59 s"),
        (7800, "2 h 10 min", "2 h 10 min"),
        (273_600, "3 d 4 h", "3 d 4 h"),
    ],
)
def test_durations_name_two_units(seconds: float, exact: str, whole: str) -> None:
    assert (duration(seconds), whole_duration(seconds)) == (exact, whole)


def test_printable_replaces_control_characters_and_bounds_the_length() -> None:
    assert printable("a\x1b[2Jb\n") == "a?[2Jb?"
    assert len(printable("x" * 1000)) == 200
    assert printable_message("x" * 300 + "\n\x07") == "x" * 300 + "  "


def test_counted_uses_the_plural() -> None:
    assert [counted(number, "node") for number in (0, 1, 2)] == ["0 nodes", "1 node", "2 nodes"]
