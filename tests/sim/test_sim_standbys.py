"""Two standbys never both keep what needs one. `python -m tests.sim.standbys 200` plays more seeds."""

from __future__ import annotations

import pytest

from meshllm.core.serving import placement
from meshllm.core.serving.placement import Need
from tests.sim import standbys
from tests.sim.standbys import MODEL, SURPLUS_SECONDS, Outcome


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


@pytest.mark.parametrize("broken", ["choose", "is_surplus"])
def test_outcome_shows_standbys_that_do_not_agree(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Without the order of the candidates both load the model; without stepping back both keep it."""
    monkeypatch.setattr(placement, "choose", lambda view, own, waited, avoided=(): Need(MODEL) if view.needs else None)
    if broken == "is_surplus":
        monkeypatch.setattr(placement, "is_surplus", lambda *arguments, **options: False)
    found = [standbys.play(seed, delay=1.0, spread=0.05) for seed in range(6)]
    assert any(outcome.most == 2 for outcome in found)
    assert any(outcome.left == 2 for outcome in found) == (broken == "is_surplus")
