"""A split is served again however far apart its nodes are restarted. `scripts/sim restarts` plays the whole grid."""

from __future__ import annotations

import pytest

from tests.sim.restarts import SERVED_AGAIN_SECONDS, Restart, case, play

# Before, at and after the times that a dial, a join and a dropped worker take.
DISTANCES = (0.0, 0.3, 1.0, 2.0, 4.0, 6.0, 9.9)
CASES = [
    case(nodes, distance, seed + number)
    for nodes in (2, 3)
    for number, distance in enumerate(DISTANCES)
    for seed in range(6)
]


@pytest.mark.parametrize("restart", CASES, ids=str)
def test_split_is_served_again_within_10_seconds_of_the_last_start(restart: Restart) -> None:
    took = play(restart)
    assert took is not None, f"not served within {SERVED_AGAIN_SECONDS:.0f} s: {restart}"


def test_host_first_and_worker_later_is_among_the_cases() -> None:
    """The order that once left the host waiting."""
    assert any(one.order == (0, 1) and one.distance > 1 for one in CASES)
