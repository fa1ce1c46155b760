"""The demand of one node: it decays by itself, is bounded, and its levels are steady."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.demand.counter import (
    GUEST_REQUESTS,
    GUESTS_REQUESTS,
    MAX_COUNTED,
    REPORT_TTL_SECONDS,
    REVIEW_SECONDS,
    DemandCounter,
    scaled,
)
from meshllm.core.demand.levels import HALF_LIFE_SECONDS, MAX_DEMANDED, MAX_LEVEL, DemandLevel, level_of, requests_of
from tests.core.small_mesh import node_id


def levels(counter: DemandCounter) -> dict[str, int]:
    return {entry.model: entry.level for entry in counter.levels}


def pass_time(counter: DemandCounter, now: float, until: float) -> int:
    """Obey the deadlines only, as a node without any event; returns how often the levels changed."""
    changes = 0
    while (at := counter.next_deadline()) is not None and at <= until:
        assert at > now, "a deadline that has passed"
        now, changed = at, counter.review(at)
        changes += changed
    return changes


def test_first_request_appears_at_once_and_goes_by_itself() -> None:
    counter = DemandCounter()
    counter.add({"m": 1}, 0.0)
    assert levels(counter) == {"m": 1}
    pass_time(counter, 0.0, 2 * HALF_LIFE_SECONDS - REVIEW_SECONDS)
    assert levels(counter) == {"m": 1}
    pass_time(counter, 2 * HALF_LIFE_SECONDS - REVIEW_SECONDS, 2 * HALF_LIFE_SECONDS + 2 * REVIEW_SECONDS)
    assert levels(counter) == {}
    assert counter.next_deadline() is None, "a node without demand is not woken"
    assert not counter.models


def test_count_halves_in_ten_minutes() -> None:
    counter = DemandCounter()
    counter.add({"m": 64}, 0.0)
    assert levels(counter) == {"m": 4}
    counter.add({"n": 1}, 3 * HALF_LIFE_SECONDS)  # 8 are left: half of level 3's 16 is not undercut
    assert levels(counter) == {"m": 3, "n": 1}
    counter.review(3 * HALF_LIFE_SECONDS + 60)
    assert levels(counter)["m"] == 2


@given(st.floats(0, 1e6), st.integers(0, MAX_LEVEL))
def test_level_is_within_a_factor_of_its_count_and_settled(count: float, shown: int) -> None:
    level = level_of(count, shown)
    assert level_of(count, level) == level, "one count gives one level"
    if level:
        assert count >= 0.25 * requests_of(level)
    if level < MAX_LEVEL:
        assert count < requests_of(level + 1)


def test_steady_requests_change_no_level() -> None:
    rng = random.Random(1)
    for per_minute in (0.7, 3.0, 11.0, 40.0, 170.0):
        counter, changes, now = DemandCounter(), 0, 0.0
        while now < 6 * 3600:
            now += rng.expovariate(per_minute / 60)
            before = counter.levels
            counter.add({"m": 1}, now)
            changes += now > 3600 and counter.levels != before
        assert changes <= 4, f"{changes} changes in five hours at {per_minute} a minute"


def test_more_models_than_counted_keep_the_largest() -> None:
    counter = DemandCounter()
    counter.add({f"big {number:03}": 100 for number in range(MAX_DEMANDED)}, 0.0)
    for number in range(1000):
        counter.add({f"small {number}": 2}, 1.0)
    assert set(levels(counter)) == {f"big {number:03}" for number in range(MAX_DEMANDED)}
    assert len(counter.models) <= MAX_COUNTED
    counter.add({"new": 5000}, 2.0)
    assert levels(counter)["new"] == 7
    assert len(counter.levels) == MAX_DEMANDED


def test_client_counts_until_it_is_silent_or_gone() -> None:
    counter = DemandCounter()
    counter.report(node_id(1), [DemandLevel("m", 3)], guest=False, now=0.0)
    counter.report(node_id(1), [DemandLevel("m", 2), DemandLevel("n", 1)], guest=False, now=10.0)
    assert levels(counter) == {"m": 2, "n": 1}, "a report replaces the last one"
    counter.report(node_id(2), [DemandLevel("m", 4)], guest=False, now=20.0)
    assert levels(counter) == {"m": 4, "n": 1}
    counter.forget(node_id(2), 30.0)
    assert levels(counter) == {"m": 2, "n": 1}
    pass_time(counter, 30.0, 10.0 + REPORT_TTL_SECONDS + REVIEW_SECONDS)
    assert levels(counter) == {}


@given(st.lists(st.lists(st.integers(1, MAX_LEVEL), min_size=1, max_size=MAX_DEMANDED + 8), min_size=1, max_size=20))
def test_guests_count_little_whatever_they_report(reports: list[list[int]]) -> None:
    counter = DemandCounter()
    for number, reported in enumerate(reports):
        demand = [DemandLevel(f"m{place}", level) for place, level in enumerate(reported)]
        counter.report(node_id(number), demand, guest=True, now=0.0)
    total = sum(counter._total().values())
    assert total <= min(GUESTS_REQUESTS, len(reports) * GUEST_REQUESTS) * 1.001
    assert all(requests_of(entry.level) <= GUESTS_REQUESTS for entry in counter.levels)


def test_scaled_keeps_what_is_below_the_bound() -> None:
    assert scaled({"a": 1.0, "b": 3.0}, 4.0) == {"a": 1.0, "b": 3.0}
    assert scaled({"a": 10.0, "b": 30.0}, 4.0) == pytest.approx({"a": 1.0, "b": 3.0})
