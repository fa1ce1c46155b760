"""Demand is a small part of what nodes tell each other; `python -m tests.sim.demand_gossip 1000` measures it."""

from __future__ import annotations

from tests.sim.demand_gossip import BAR, measure


def test_demand_is_a_small_part_of_the_gossip() -> None:
    traffic = measure(20)
    assert 0.0 < traffic.part <= BAR, traffic
