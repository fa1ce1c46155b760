"""The progress of a long operation."""

from __future__ import annotations

from meshllm.util.progress import Progress


def test_fraction_is_none_while_the_total_is_unknown() -> None:
    assert Progress("fetch", 5).fraction is None
    assert Progress("fetch", 5, 20).fraction == 0.25


def test_progress_known_as_a_fraction_keeps_it() -> None:
    assert Progress.at("loading", 0.42, "5.6 of 13.3 GB").fraction == 0.42
    assert Progress.at("loading", None).fraction is None
