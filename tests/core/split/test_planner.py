"""Who carries a model together: any machines, any model, always the same answer, and one that holds."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.records import NodeId
from meshllm.core.split.planner import (
    MAX_RTT_SECONDS,
    NoPlan,
    SplitNeed,
    SplitPlan,
    WorkerOffer,
    choose_host,
    plan,
    seconds_per_token,
)

GIGABYTE = 10**9


def node(number: int) -> NodeId:
    return NodeId(bytes([number]) * 32)


def lender(number: int, gigabytes: float, rtt: float | None = 0.002, speed: float = 0.0) -> WorkerOffer:
    return WorkerOffer(node(number), int(gigabytes * GIGABYTE), rtt, speed)


def need(layers: int = 32, gigabytes: float = 16.0, ends: float = 1.0) -> SplitNeed:
    """A model of equal layers."""
    each = int(gigabytes * GIGABYTE / layers)
    return SplitNeed((each,) * layers, (each,) * layers, int(ends * GIGABYTE), 100_000_000, int(ends * GIGABYTE) // 2)


def counts(found: SplitPlan | NoPlan) -> list[int]:
    assert isinstance(found, SplitPlan), found
    return [share.layers for share in found.shares]


def test_plan_does_not_split_a_model_that_fits() -> None:
    found = plan(need(), lender(1, 24), [lender(2, 64)], "m")
    assert counts(found) == [32]
    assert isinstance(found, SplitPlan)
    assert found.members == ()
    assert "fits" in found.reason


def test_plan_splits_layers_in_proportion_to_free_memory() -> None:
    found = plan(need(gigabytes=16, ends=1.0), lender(1, 9.1), [lender(2, 16.1)], "m")
    assert counts(found) == [11, 21]  # 8 and 16 GB to spare
    assert isinstance(found, SplitPlan)
    assert found.shares[1].first == 11


def test_plan_uses_as_few_workers_as_needed_nearest_first() -> None:
    others = [lender(2, 8, 0.030), lender(3, 8, 0.001), lender(4, 8, 0.010), lender(5, 8, None)]
    found = plan(need(), lender(1, 8), others, "m")
    assert isinstance(found, SplitPlan)
    assert [share.node for share in found.members] == [node(3), node(4)]


def test_plan_excludes_far_workers_and_uses_unmeasured_ones_last() -> None:
    far = lender(2, 64, MAX_RTT_SECONDS + 0.001)
    refused = plan(need(), lender(1, 8), [far], "m")
    assert isinstance(refused, NoPlan)
    assert "No idle node within 80 ms" in refused.reason
    found = plan(need(), lender(1, 8), [far, lender(3, 64, None)], "m")
    assert isinstance(found, SplitPlan)
    assert [share.node for share in found.members] == [node(3)]


def test_no_plan_names_the_missing_bytes() -> None:
    refused = plan(need(gigabytes=16, ends=1.0), lender(1, 6), [lender(2, 6)], "m")
    assert isinstance(refused, NoPlan)
    assert refused.missing == 16 * GIGABYTE + 1 * GIGABYTE + 2 * 100_000_000 - 12 * GIGABYTE
    assert refused.reason == "needs 17.1 GB, this node and 1 idle node have 12.0 GB together: 5.2 GB more"
    alone = plan(SplitNeed((90_000_000,) * 2, (1,) * 2, 0, 0), WorkerOffer(node(1), 150_000_000), [], "m")
    assert isinstance(alone, NoPlan)
    assert alone.reason.startswith("needs 0.18 GB, this node has 0.15 GB: 0.03 GB more. No idle node within 80 ms")


def test_plan_reason_names_the_workers() -> None:
    attic = replace(lender(2, 12), name="attic")
    found = plan(need(gigabytes=16), lender(1, 12), [attic], "m")
    assert isinstance(found, SplitPlan)
    assert found.reason.endswith("this node has 12.0 GB: attic serves the rest")


def test_no_plan_if_a_layer_fits_no_node() -> None:
    coarse = SplitNeed((10,) * 2, (10,) * 2, 0, 0)
    assert isinstance(plan(coarse, WorkerOffer(node(1), 11), [WorkerOffer(node(2), 9, 0.001)], "m"), NoPlan)


def test_plan_fills_the_devices_of_a_worker_in_order() -> None:
    two = replace(lender(2, 30), devices=(10 * GIGABYTE, 20 * GIGABYTE))
    found = plan(need(gigabytes=32, ends=1.0), lender(1, 10), [two], "m")
    assert isinstance(found, SplitPlan)
    host, member = found.shares
    assert host.devices == ()
    assert (sum(member.devices), len(member.devices)) == (member.layers, 2)
    assert 1.8 < member.devices[1] / member.devices[0] < 2.2, "in proportion to what each has"
    assert member.runs == member.devices
    assert member.memory == member.layers * GIGABYTE + 2 * 100_000_000, "each takes room for computing"
    # In one piece that would do; in these two a layer too many is left over.
    tight = need(layers=3, gigabytes=30, ends=0.0)
    assert isinstance(plan(tight, lender(1, 10.2), [lender(2, 20.2)], "m"), SplitPlan)
    halves = replace(lender(2, 20.4), devices=(15 * GIGABYTE, 5_400_000_000))
    assert isinstance(plan(tight, lender(1, 10.2), [halves], "m"), NoPlan)


def test_plan_leaves_a_device_that_is_too_small_empty() -> None:
    uneven = replace(lender(2, 21), devices=(1 * GIGABYTE, 20 * GIGABYTE))
    found = plan(need(layers=8, gigabytes=24, ends=1.0), lender(1, 10), [uneven], "m")
    assert isinstance(found, SplitPlan)
    assert found.shares[1].devices == (0, found.shares[1].layers)
    assert found.shares[1].runs == (found.shares[1].layers,)
    nothing = replace(lender(2, 2), devices=(1 * GIGABYTE, 1 * GIGABYTE))
    assert isinstance(plan(need(layers=8, gigabytes=24), lender(1, 24), [nothing], "m"), NoPlan)


def test_plan_with_force_splits_a_model_that_fits() -> None:
    found = plan(need(gigabytes=1, ends=0.1), lender(1, 64), [lender(2, 64)], "m", force=True)
    assert sum(counts(found)) == 32
    assert len(counts(found)) == 2
    alone = plan(need(gigabytes=1, ends=0.1), lender(1, 64), [], "m", force=True)
    assert isinstance(alone, NoPlan)
    assert "a split was requested" in alone.reason


def test_plan_with_force_gives_a_tiny_worker_a_layer() -> None:
    small = plan(need(layers=30, gigabytes=0.1, ends=0.05), lender(1, 64), [lender(2, 1)], "m", force=True)
    assert counts(small)[1] >= 1


def test_plan_prefers_a_much_faster_worker() -> None:
    fast = lender(3, 64, 0.004, speed=900e9)
    found = plan(need(), lender(1, 24, speed=10e9), [lender(2, 64, 0.001, speed=10e9), fast], "m")
    assert isinstance(found, SplitPlan)
    assert [share.node for share in found.members] == [node(3)]
    assert "faster" in found.reason
    assert len(found.considered) == 4
    assert min(promise.seconds for promise in found.considered) == found.seconds


def test_plan_ignores_a_gain_below_the_margin() -> None:
    found = plan(need(), lender(1, 24, speed=10e9), [lender(2, 24, 0.001, speed=10.5e9)], "m")
    assert counts(found) == [32]


def test_forecast_adds_reading_and_round_trips() -> None:
    model = SplitNeed((4,) * 3, (4_000_000_000,) * 3, 0, 0, 2_000_000_000)
    team = [
        WorkerOffer(node(1), 4, None, 20e9),
        WorkerOffer(node(2), 4, 0.020, 40e9),
        WorkerOffer(node(3), 4, 0.020, 40e9),
    ]
    found = plan(model, team[0], team[1:], "m")
    assert isinstance(found, SplitPlan)
    # 6 GB at 20 GB/s, twice 4 GB at 40 GB/s, and three ways of 10 ms.
    assert found.seconds == pytest.approx(0.3 + 0.2 + 0.030)
    assert seconds_per_token(model, team, found.shares) == found.seconds


def test_choose_host_takes_most_memory_then_the_hash() -> None:
    assert choose_host([lender(1, 8), lender(2, 9), lender(3, 7)], "m") == node(2)
    equals = [lender(number, 8) for number in range(1, 9)]
    chosen = {model: choose_host(equals, model) for model in "abcdefghijklmnop"}
    assert len(set(chosen.values())) > 2
    assert all(choose_host(reversed(equals), model) == host for model, host in chosen.items())
    assert choose_host([], "m") is None


lenders = st.builds(
    WorkerOffer,
    node=st.integers(1, 40).map(node),
    memory=st.integers(0, 400),
    rtt=st.none() | st.floats(0.0001, 0.2),
    speed=st.just(0.0) | st.floats(1.0, 1000.0),
)
several = st.builds(
    lambda one, rooms: replace(one, memory=sum(rooms), devices=tuple(rooms)),
    lenders,
    st.lists(st.integers(0, 200), min_size=2, max_size=4),
)
needs = st.integers(1, 40).flatmap(
    lambda count: st.builds(
        SplitNeed,
        layers=st.lists(st.integers(1, 40), min_size=count, max_size=count).map(tuple),
        weights=st.lists(st.integers(0, 40), min_size=count, max_size=count).map(tuple),
        ends=st.integers(0, 60),
        buffers=st.integers(0, 10),
        end_weights=st.integers(0, 60),
    )
)


@given(needs, lenders, st.lists(lenders | several, max_size=12), st.booleans(), st.randoms())
def test_plan_is_valid_and_independent_of_order(
    model: SplitNeed, host: WorkerOffer, others: list[WorkerOffer], force: bool, rng: random.Random
) -> None:
    others = list({other.node: other for other in others if other.node != host.node}.values())
    found = plan(model, host, others, "m", force=force)
    shuffled = others[:]
    rng.shuffle(shuffled)
    assert plan(model, host, shuffled, "m", force=force) == found
    if isinstance(found, NoPlan):
        assert found.missing > 0 or force
        assert plan(model, replace(host, memory=model.total), others, "m") != found
        return
    assert found.host == host.node
    assert sum(share.layers for share in found.shares) == len(model.layers)
    assert found.shares[0].first == 0
    assert all(one.first + one.layers == two.first for one, two in pairwise(found.shares))
    known = {other.node: other for other in (host, *others)}
    for share in found.shares:
        assert share.layers >= 1
        assert share.memory <= known[share.node].memory
        rooms, at = known[share.node].devices, share.first
        assert len(share.devices) == len(rooms)
        for room, run in zip(rooms, share.devices, strict=True):
            assert not run or sum(model.layers[at : at + run]) + model.buffers <= room
            at += run
        assert not rooms or at == share.first + share.layers
    places = sum(len(share.runs) for share in found.shares)
    assert sum(share.memory for share in found.shares) == model.total + model.buffers * (places - 1)
