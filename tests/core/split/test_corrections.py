"""Forecasts that learn: bounded, convergent, steady, and the same for the same measurements."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.records import NodeId
from meshllm.core.split.corrections import (
    HALF_LIFE_SECONDS,
    LEAST_FACTOR,
    LEAST_STEPS,
    MAX_CORRECTIONS,
    MOST_FACTOR,
    TOLERANCE,
    Correction,
    Corrections,
    aged,
    model_class,
)
from meshllm.core.split.planner import SplitNeed, SplitPlan, WorkerOffer, plan

A, B, C = (NodeId(bytes([number]) * 32) for number in (1, 2, 3))
BYTES = 100_000_000
DAY = 86400.0

seconds = st.floats(1e-6, 1e4)
observations = st.lists(
    st.tuples(
        st.sampled_from([(A,), (A, B), (B, A), (A, C), (A, B, C)]),
        st.integers(1, 10**13),
        seconds,
        seconds,
        st.integers(0, 100_000),
        st.floats(0, 400 * DAY),
    ),
    max_size=12,
)
Observations = list[tuple[tuple[NodeId, ...], int, float, float, int, float]]


def learned(history: Observations) -> Corrections:
    found, now = Corrections(), 0.0
    for nodes, size, plain, measured, steps, wait in history:
        now += wait
        found.observe(nodes, size, plain, measured, steps, now)
    return found


@given(observations, seconds, st.integers(1, 10**13), st.floats(0, 4000 * DAY))
def test_corrected_forecast_is_bounded(history: Observations, plain: float, size: int, now: float) -> None:
    found = learned(history)
    for team in ((A,), (A, B), (A, B, C)):
        corrected = found.forecast(team, size, plain, now)
        assert plain * LEAST_FACTOR <= corrected <= plain * MOST_FACTOR


@given(observations, seconds, st.floats(LEAST_FACTOR, MOST_FACTOR), st.integers(10**6, 10**12))
def test_forecast_converges_to_what_is_measured(history: Observations, plain: float, ratio: float, size: int) -> None:
    found, now = learned(history), 400.0 * DAY * 20
    for _ in range(40):
        found.observe((A, B), size, plain, plain * ratio, 400, now)
    corrected = found.forecast((A, B), size, plain, now)
    assert ratio / (TOLERANCE * 1.01) <= corrected / plain <= ratio * TOLERANCE * 1.01


@given(seconds, st.floats(LEAST_FACTOR, MOST_FACTOR), st.integers(LEAST_STEPS, 1000))
def test_first_measurement_corrects_the_next_forecast(plain: float, ratio: float, steps: int) -> None:
    found = Corrections()
    assert found.forecast((A, B), BYTES, plain, 0.0) == plain
    assert found.observe((B, A), BYTES, plain, plain * ratio, steps, 0.0)
    assert found.forecast((A, B), BYTES, plain, 0.0) == pytest.approx(plain * ratio)


@given(seconds, st.lists(st.floats(0.93, 1.07), min_size=1, max_size=50))
def test_noise_does_not_move_a_forecast(plain: float, noise: list[float]) -> None:
    found = Corrections()
    found.observe((A, B), BYTES, plain, plain * 4, 200, 0.0)
    before = found.forecast((A, B), BYTES, plain, 0.0)
    for part in noise:
        assert not found.observe((A, B), BYTES, plain, plain * 4 * part, 200, 0.0)
    assert found.forecast((A, B), BYTES, plain, 0.0) == before


def test_forecast_does_not_depend_on_what_the_plain_one_was_when_it_was_learned() -> None:
    # A round trip that was long while the model was loaded: the plain forecast was 18 ms then and is 6 ms now.
    found = Corrections()
    found.observe((A, B), BYTES, 0.018, 0.049, 100, 0.0)
    assert found.forecast((A, B), BYTES, 0.006, 0.0) == pytest.approx(0.049)


def test_correction_fades() -> None:
    found = Corrections()
    found.observe((A, B), BYTES, 0.01, 0.09, 100, 0.0)
    later = [found.forecast((A, B), BYTES, 0.01, n * HALF_LIFE_SECONDS) for n in range(12)]
    assert later == sorted(later, reverse=True)
    assert later[1] == pytest.approx(0.03)
    assert later[11] == pytest.approx(0.01, rel=0.01)
    # And what is old weighs little against a new measurement.
    found.observe((A, B), BYTES, 0.01, 0.01, 100, 12 * HALF_LIFE_SECONDS)
    assert found.forecast((A, B), BYTES, 0.01, 12 * HALF_LIFE_SECONDS) < 0.011


def test_team_with_one_more_node_is_not_forecast_faster_than_its_slow_part() -> None:
    found = Corrections()
    found.observe((A, B), BYTES, 0.01, 0.08, 100, 0.0)
    assert found.forecast((A, B, C), BYTES, 0.01, 0.0) == pytest.approx(0.08)
    assert found.forecast((A, C), BYTES, 0.01, 0.0) == 0.01
    assert found.forecast((A, B), BYTES * 100, 0.01, 0.0) == 0.01, "a large model is another matter"


@pytest.mark.parametrize(
    ("plain", "measured", "steps"),
    [(0.0, 1.0, 100), (1.0, 0.0, 100), (1.0, float("nan"), 100), (float("inf"), 1.0, 100), (1.0, 2.0, LEAST_STEPS - 1)],
)
def test_measurement_that_says_nothing_is_ignored(plain: float, measured: float, steps: int) -> None:
    found = Corrections()
    assert not found.observe((A, B), BYTES, plain, measured, steps, 0.0)
    assert found.all == ()


def test_number_of_corrections_is_bounded() -> None:
    found = Corrections()
    for number in range(MAX_CORRECTIONS + 20):
        found.observe((A, NodeId(number.to_bytes(32))), BYTES, 0.01, 0.02, 100, float(number))
    assert len(found.all) == MAX_CORRECTIONS
    assert found.all[-1].at == MAX_CORRECTIONS + 19


@given(observations)
def test_corrections_survive_a_change_of_clock(history: Observations) -> None:
    found = learned(history)
    moved = Corrections(aged(found.all, 1000.0))
    now = 400.0 * DAY * 13
    for team in ((A, B), (A, C), (A, B, C)):
        expected = found.forecast(team, BYTES, 0.01, now)
        assert moved.forecast(team, BYTES, 0.01, now + 1000.0) == pytest.approx(expected)


def offers(memory: int) -> list[WorkerOffer]:
    """Three workers, equally far."""
    return [WorkerOffer(NodeId(bytes([number]) * 32), memory, 0.001, 10e9) for number in (2, 3, 4)]


@given(observations, st.randoms(use_true_random=False))
def test_equal_measurements_give_equal_plans(history: Observations, rng: random.Random) -> None:
    need = SplitNeed((10**9,) * 12, (10**9,) * 12, 10**8, 10**8)
    host, workers = WorkerOffer(A, 9 * 10**9, 0.0, 10e9), offers(9 * 10**9)
    plans = []
    for _ in range(3):
        found, shuffled = learned(history), workers[:]
        rng.shuffle(shuffled)
        plans.append(
            plan(need, host, shuffled, "m", correct=lambda n, b, s, f=found: f.forecast(n, b, s, 1e9))  # type: ignore[misc]
        )
    assert plans[0] == plans[1] == plans[2]


def test_plan_avoids_a_team_that_was_measured_slow() -> None:
    need = SplitNeed((10**9,) * 12, (10**9,) * 12, 10**8, 10**8)
    host, workers = WorkerOffer(A, 9 * 10**9, 0.0, 10e9), offers(9 * 10**9)
    first = plan(need, host, workers, "m")
    assert isinstance(first, SplitPlan)
    found = Corrections()
    found.observe([share.node for share in first.shares], need.token_bytes, first.seconds, first.seconds * 5, 99, 0.0)
    second = plan(need, host, workers, "m", correct=lambda n, b, s: found.forecast(n, b, s, 0.0))
    assert isinstance(second, SplitPlan)
    assert second.members[0].node != first.members[0].node
    assert {node for way in second.considered for node in way.nodes} >= {share.node for share in first.shares}


def test_class_is_a_power_of_four() -> None:
    assert model_class(0) == model_class(3) == 0
    assert model_class(4**13) - model_class(4**12) == 1
    small = Correction((A,), 1, 1.0, 1.0, 1.0, 1.0, 0.0)
    assert aged([small], 5.0) == (replace(small, at=5.0),)
