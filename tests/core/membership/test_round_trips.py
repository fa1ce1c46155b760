"""Round-trip times: one slow answer weighs little, a quick one counts at once, small changes are not shown."""

from __future__ import annotations

import pytest

from meshllm.core.membership.round_trips import is_change, smoothed


def test_round_trip_follows_quick_answers_at_once_and_slow_ones_slowly() -> None:
    assert smoothed(0.1, 0.02) == 0.02
    assert smoothed(0.1, 0.9) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("shown", "now", "change"), [(0.004, 0.0049, False), (0.004, 0.0051, True), (0.1, 0.109, False), (0.1, 0.089, True)]
)
def test_small_changes_of_a_round_trip_are_not_shown(shown: float, now: float, change: bool) -> None:
    assert is_change(shown, now) is change
