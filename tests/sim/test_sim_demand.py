"""Placement follows demand, at a size that a test can afford; `scripts/sim demand` plays it at full size."""

from __future__ import annotations

import pickle

import pytest

from meshllm.core.serving import placement
from tests.sim.demand import DemandSimulation, Figures, Setting

SMALL = Setting(nodes=150, standbys=0.6, load=0.3)


def meets_the_bars(figures: Figures) -> None:
    assert figures.requests > 100
    assert not figures.missed, figures.words()


def test_demand_is_served_as_well_as_by_an_oracle_although_it_shifts() -> None:
    meets_the_bars(DemandSimulation(SMALL).run(1.2))


def test_figures_show_a_placement_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "choose", lambda *arguments: None)
    figures = DemandSimulation(SMALL).run(0.1)
    assert figures.served == figures.answered == 0
    assert figures.coverable > 100
    assert figures.missed


def test_run_that_was_interrupted_goes_on_as_if_it_had_not_been() -> None:
    one = DemandSimulation(Setting(nodes=40, standbys=0.5))
    one.run(0.1)
    other: DemandSimulation = pickle.loads(pickle.dumps(one))
    assert one.run(0.2) == other.run(0.2)


def test_demand_is_served_although_most_standbys_have_a_model() -> None:
    simulation = DemandSimulation(Setting(nodes=120, standbys=0.5, load=0.4, seed=2))
    figures = simulation.run(2.5)
    meets_the_bars(figures)
    assert figures.moves > 0, "the demand shifts, and no standby is left"
