"""Two standbys never both keep what needs one."""

from __future__ import annotations

import pytest

from tests.sim import standbys
from tests.sim.standbys import SURPLUS_SECONDS, Outcome


def holds(found: list[Outcome]) -> None:
    for outcome in found:
        assert outcome.most <= 2, outcome
        assert outcome.left == 1, outcome
        assert outcome.surplus_for <= SURPLUS_SECONDS, outcome
        assert outcome.served is not None, outcome
        assert outcome.served <= 60.0, outcome
    assert sum(outcome.loaded == 1 for outcome in found) >= 0.95 * len(found)


def test_one_of_two_standbys_loads_the_model() -> None:
    holds([standbys.play(seed) for seed in range(6)])


@pytest.mark.slow
def test_one_of_two_standbys_loads_the_model_with_200_seeds() -> None:
    holds([standbys.play(seed) for seed in range(200)])
