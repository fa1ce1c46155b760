"""The blackboard in a mesh of whole cores; `scripts/sim board --nodes 1000` measures the same at full size."""

from __future__ import annotations

from tests.sim.board import BYTES_RATIO, ROUND_TRIPS, SPREAD_SECONDS, BoardSimulation, catch_up, idle, spread


def test_a_post_is_everywhere_soon_and_an_idle_board_is_silent() -> None:
    simulation = BoardSimulation(1)
    simulation.grow(40)
    took = spread(simulation)
    assert took is not None, simulation.trouble()
    assert took <= SPREAD_SECONDS, simulation.trouble()
    simulation.run(5.0)
    assert idle(simulation, 20.0) == 0, simulation.trouble()


def test_a_node_that_comes_back_catches_up_with_few_round_trips_and_bytes() -> None:
    found = catch_up(8, 1400)
    assert found.complete
    assert found.round_trips <= ROUND_TRIPS
    assert found.ratio <= BYTES_RATIO
