"""Exponential backoff: doubling, cap, jitter."""

from __future__ import annotations

from random import Random

import pytest

from meshllm.util.backoff import JITTER, backoff


def test_backoff_doubles_up_to_the_cap() -> None:
    assert [backoff(attempt, base=0.5, cap=5.0) for attempt in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize("attempt", [-1, 0, 16, 17, 10_000])
def test_backoff_stays_between_base_and_cap(attempt: int) -> None:
    assert 0.5 <= backoff(attempt, base=0.5, cap=30.0) <= 30.0


def test_backoff_jitter_adds_at_most_a_fifth() -> None:
    rng = Random(1)
    delays = [backoff(3, base=1.0, cap=30.0, rng=rng) for _ in range(1000)]
    assert 8.0 <= min(delays) < 8.1
    assert 9.5 < max(delays) <= 8.0 * (1 + JITTER)
