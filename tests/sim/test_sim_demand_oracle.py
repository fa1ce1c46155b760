"""The oracle's answer is the maximum: no division of the slots answers more requests."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.demand_oracle import answerable, coverable

SLOTS = 4.0


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(0, 4)).map(sorted), min_size=1),
    st.lists(st.integers(0, 15), min_size=4, max_size=4),
)
def test_oracle_reaches_the_minimum_cut(able: dict[str, list[int]], demands: list[int]) -> None:
    wanted = {model: float(demands["abcd".index(model)]) for model in able}
    parts = answerable(able, wanted, SLOTS)
    reached = sum(parts[model] * wanted[model] for model in wanted)
    cuts = []
    for count in range(len(able) + 1):
        for cut in combinations(sorted(able), count):
            nodes = {node for model in cut for node in able[model]}
            cuts.append(SLOTS * len(nodes) + sum(wanted[model] for model in able if model not in cut))
    assert reached == pytest.approx(min(cuts))
    assert all(0.0 <= part <= 1.0 for part in parts.values())


def test_models_without_a_living_node_cannot_be_covered() -> None:
    assert coverable({"a": [1], "b": []}) == {"a"}
    assert answerable({"a": [1], "b": []}, {"a": 8.0, "b": 1.0}, SLOTS) == {"a": 0.5, "b": 0.0}
