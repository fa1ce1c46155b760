"""The ways between simulated nodes do what scenarios say of them."""

from __future__ import annotations

import random

import pytest

from tests.sim.network import Network


def network(seed: int = 1, **options: object) -> Network:
    return Network(random.Random(seed), **options)  # type: ignore[arg-type]


def test_sim_network_seed_repeats_everything() -> None:
    runs = [[each.travel(one, two) for one in range(5) for two in range(5)] for each in (network(loss=0.3),) * 1]
    assert runs == [[each.travel(one, two) for one in range(5) for two in range(5)] for each in (network(loss=0.3),)]


def test_sim_network_message_takes_at_least_its_path() -> None:
    ways = network(delay=(0.010, 0.010))
    for _ in range(1000):
        travel = ways.travel(0, 1)
        assert travel is not None
        assert travel >= 0.010


def test_sim_network_loses_the_given_share() -> None:
    ways = network(loss=0.1)
    lost = sum(ways.travel(0, 1) is None for _ in range(10_000))
    assert lost == pytest.approx(1000, rel=0.15)


def test_sim_network_retransmission_delivers_everything() -> None:
    ways = network(loss=0.1, retransmit=True, delay=(0.010, 0.010))
    travels = [ways.travel(0, 1) for _ in range(10_000)]
    late = sum(travel is not None and travel > 0.2 for travel in travels)
    assert None not in travels
    assert late == pytest.approx(1000, rel=0.15)


def test_sim_network_cut_blocks_both_directions_or_one() -> None:
    ways = network()
    ways.cut([0], [1])
    ways.cut([2], [3], one_way=True)
    assert ways.travel(0, 1) is ways.travel(1, 0) is ways.travel(2, 3) is None
    assert ways.travel(3, 2) is not None
    assert ways.travel(0, 2) is not None
    # A connection needs both ways.
    assert ways.severed(2, 3)
    assert ways.severed(3, 2)
    assert not ways.severed(0, 2)
    ways.heal()
    assert ways.travel(0, 1) is not None
    assert not ways.severed(2, 3)
