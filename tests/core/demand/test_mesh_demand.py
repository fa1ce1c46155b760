"""The demand of the mesh: the sum for people, and bounded voices for placement."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.demand.levels import MAX_DEMANDED, MAX_LEVEL, DemandLevel, keyed
from meshllm.core.demand.mesh_demand import (
    GUEST_VOICE_MODELS,
    GUEST_VOICE_REQUESTS,
    VOICE_REQUESTS,
    WISH_REQUESTS,
    DemandClaim,
    DemandScore,
    DemandTotal,
    scores,
    totals,
)
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, ServedModel
from tests.core.small_mesh import node_id


def record(number: int, wants: tuple[str, ...] = (), serves: tuple[str, ...] = (), **demand: int) -> NodeRecord:
    return NodeRecord(
        node_id(number),
        RecordVersion(1, 1),
        MeshId(bytes(16)),
        serves=tuple(map(ServedModel, serves)),
        wants=wants,
        on_disk=tuple(demand),
        demand=keyed([DemandLevel(model, level) for model, level in demand.items()]),
    )


def claim(number: int, *, voice: int | None = None, owned: bool = True, **demand: int) -> DemandClaim:
    return DemandClaim(record(number, **demand), node_id(number if voice is None else voice), owned)


def test_totals_add_up_living_nodes_and_wishes() -> None:
    found = totals([record(1, m=3, n=1), record(2, ("w", "m"), m=2), record(3, serves=("m", "x"))])
    assert found == (DemandTotal("m", 20, 2, 1, 1), DemandTotal("n", 1, 1, 0, 0), DemandTotal("w", 0, 0, 1, 0))


def test_scores_count_requests_and_wishes() -> None:
    wishing = DemandClaim(record(3, ("w",)), node_id(3), True)
    found = scores([claim(1, m=2), claim(2, m=1, n=1), wishing])
    assert found == {
        "m": DemandScore(5.0, 5.0),
        "n": DemandScore(1.0, 1.0),
        "w": DemandScore(WISH_REQUESTS, WISH_REQUESTS),
    }


@given(st.dictionaries(st.sampled_from([f"m{n}" for n in range(40)]), st.integers(1, MAX_LEVEL), max_size=MAX_DEMANDED))
def test_one_voice_has_a_bounded_effect(claimed: dict[str, int]) -> None:
    honest = [claim(1, m0=2, m1=1), claim(2, m1=1)]
    before = scores(honest)
    for owned, most in ((True, VOICE_REQUESTS), (False, GUEST_VOICE_REQUESTS)):
        flood = [claim(number, voice=50, owned=owned, **claimed) for number in range(50, 70)]
        after = scores([*honest, *flood])
        gained = sum(after[model].score - (before[model].score if model in before else 0.0) for model in after)
        assert gained <= most * 1.001
        if not owned:
            assert len(after.keys() - before.keys()) <= GUEST_VOICE_MODELS
            for model, found in after.items():
                assert found.firm == pytest.approx(before[model].firm if model in before else 0.0)


def test_voice_with_one_foreign_node_is_foreign() -> None:
    mixed = scores([claim(1, voice=9, m=8), claim(2, voice=9, owned=False, m=8)])
    assert mixed["m"] == DemandScore(GUEST_VOICE_REQUESTS, 0.0)


def test_scores_do_not_depend_on_the_order() -> None:
    rng = random.Random(1)
    claims = [
        claim(number, owned=number % 3 > 0, **{f"m{rng.randrange(9)}": rng.randrange(1, 9) for _ in range(4)})
        for number in range(60)
    ]
    expected = scores(claims)
    for _ in range(20):
        rng.shuffle(claims)
        assert scores(claims) == expected
