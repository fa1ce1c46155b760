"""Placement follows demand, at a size that a test can afford; `scripts/sim demand` plays it at full size."""

from __future__ import annotations

import pytest

from tests.sim.demand import DemandSimulation, Figures


def meets_the_bars(figures: Figures) -> None:
    assert figures.requests > 100
    assert figures.share >= 0.99, figures.words()
    assert figures.moves_per_node_hour <= 0.5, figures.words()
    assert figures.last_hosts_lost == 0, figures.words()


def test_demand_is_served_as_well_as_by_an_oracle() -> None:
    meets_the_bars(DemandSimulation(120, 1).run(1.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_demand_is_served_for_hours_although_it_shifts_and_nodes_end(seed: int) -> None:
    meets_the_bars(DemandSimulation(200, seed).run(6.0))
