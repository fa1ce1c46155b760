"""Why a forecast missed: one short sentence from what the host knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.records import NodeId
from meshllm.core.split.measurement import MISS_FACTOR, Circumstances, MeasuredSplit, continued, explain
from meshllm.core.split.planner import (
    NoPlan,
    SplitNeed,
    SplitPlan,
    WorkerOffer,
    counted_once,
    plan,
    seconds_per_token,
)

GB = 10**9
NEED = SplitNeed((GB // 2,) * 12, (GB // 2,) * 12, GB // 10, GB // 100)


def offer(number: int, name: str, **facts: object) -> WorkerOffer:
    known = WorkerOffer(NodeId(bytes([number]) * 32), 4 * GB, 0.001, 20e9, (), name)
    return replace(known, **facts)  # type: ignore[arg-type]


HERE, ATTIC, CELLAR = offer(1, "this node", rtt=0.0), offer(2, "attic"), offer(3, "cellar")


def planned(*team: WorkerOffer) -> SplitPlan:
    found = plan(NEED, team[0], team[1:], "m", force=True)
    assert isinstance(found, SplitPlan)
    assert len(found.shares) == len(team)
    return found


def on(machine: str, known: WorkerOffer) -> WorkerOffer:
    return replace(known, machine=machine.encode().ljust(8), machine_memory=100 * GB)


def slow(nodes: tuple[WorkerOffer, ...], factor: float = 4.0, **circumstances: object) -> str:
    found = planned(*nodes)
    told = replace(Circumstances(nodes), **circumstances)  # type: ignore[arg-type]
    text = explain(found, found.seconds * factor, told)
    amount, _, cause = text.partition(" slower than forecast: ")
    assert amount == f"{factor:.1f} times"
    return cause


def test_shared_processor_is_the_cause() -> None:
    assert slow((on("a", HERE), on("a", ATTIC))) == "both nodes share this machine's processor"
    small = SplitNeed((GB // 10,) * 6, (GB // 10,) * 6, 0, 0)
    workers = [replace(on("a", known), memory=GB // 4) for known in (ATTIC, CELLAR)]
    found = plan(small, replace(on("a", HERE), memory=GB // 4), workers, "m")
    assert isinstance(found, SplitPlan)
    three = Circumstances((on("a", HERE), on("a", ATTIC), on("a", CELLAR)))
    assert explain(found, found.seconds * 12, three) == (
        "12 times slower than forecast: all nodes share this machine's processor"
    )
    for machines, cause in (
        ("aab", "attic and this node share this machine's processor"),
        ("abb", "attic and cellar share one machine's processor"),
        ("abc", "the cause is unknown"),
    ):
        team = tuple(
            replace(on(m, known), memory=GB // 4) for m, known in zip(machines, (HERE, ATTIC, CELLAR), strict=True)
        )
        split = plan(small, team[0], team[1:], "m")
        assert isinstance(split, SplitPlan)
        assert len(split.shares) == 3
        assert explain(split, split.seconds * 3, Circumstances(team)).endswith(f": {cause}")


def test_busy_link_is_the_cause_if_it_explains_a_good_part() -> None:
    team = (HERE, ATTIC)
    excess = planned(*team).seconds * 3
    busy = (HERE, replace(ATTIC, rtt=ATTIC.rtt + excess))  # type: ignore[operator]
    assert slow(team, team=busy).startswith("the link to attic is busy (round trip ")
    assert slow(team, team=busy).endswith(", before 1.0 ms)")
    little = (HERE, replace(ATTIC, rtt=ATTIC.rtt + excess / 10))  # type: ignore[operator]
    assert slow(team, team=little) == "the cause is unknown"
    # It is measured, a shared processor is a guess.
    both = (on("a", HERE), on("a", ATTIC))
    late = (both[0], replace(both[1], rtt=10.0))
    assert slow(both, team=late).startswith("the link to attic is busy")


def test_other_causes() -> None:
    team = (HERE, ATTIC)
    assert slow(team, parallel=4) == "4 requests at a time share the nodes"
    assert slow(team, others=0.8) == "other programs use 80 % of this machine's processor"
    assert slow(team, others=0.1) == "the cause is unknown"
    assert slow((HERE, replace(ATTIC, speed=0.0))) == "the speed of attic was not measured"


def test_faster_than_forecast_is_explained_too() -> None:
    found = planned(HERE, ATTIC)
    told = Circumstances((HERE, ATTIC))
    assert explain(found, found.seconds / 4, told) == (
        "4.0 times faster than forecast: the nodes compute faster than measured before"
    )
    corrected = replace(found, plain_seconds=found.seconds / 10)
    assert explain(corrected, found.seconds / 4, told).endswith(": what slowed earlier answers is gone")


@given(st.floats(1 / MISS_FACTOR + 1e-6, MISS_FACTOR - 1e-6))
def test_a_forecast_that_is_near_is_not_explained(ratio: float) -> None:
    found = planned(HERE, ATTIC)
    assert explain(found, found.seconds * ratio, Circumstances((HERE, ATTIC))) == ""


@given(st.floats(1e-9, 1e9), st.integers(0, 100), st.one_of(st.none(), st.floats(0, 1)))
def test_every_miss_is_one_short_sentence(ratio: float, parallel: int, others: float | None) -> None:
    found = planned(on("a", HERE), on("a", ATTIC))
    text = explain(found, found.seconds * ratio, Circumstances(found.team, parallel, others))
    assert bool(text) == (not 1 / MISS_FACTOR <= ratio <= MISS_FACTOR)
    assert len(text) < 120
    assert "\n" not in text


def test_measured_time_follows_the_last_steps() -> None:
    found, written, seconds = MeasuredSplit(), 0, 0.0
    for step, count in ((0.01, 1000), (0.05, 2000)):
        for _ in range(count // 100):
            written, seconds = written + 100, seconds + 100 * step
            found = continued(found, DraftCounts(written=written, seconds=seconds))
    assert found.seconds == pytest.approx(0.05, rel=0.01)
    assert continued(found, found.counts) == found
    # A counter that goes back is of another process: nothing was measured.
    assert continued(found, DraftCounts()).seconds == found.seconds


# -- one machine counts once


def test_memory_of_a_machine_counts_once() -> None:
    """Two nodes without --max-vram both offer all that is free."""
    pair = [replace(on("a", known), memory=8 * GB, machine_memory=8 * GB) for known in (HERE, ATTIC)]
    big = SplitNeed((GB,) * 12, (GB,) * 12, 0, 0)
    refused = plan(big, pair[0], [pair[1]], "m")
    assert isinstance(refused, NoPlan)
    assert "this node and 1 idle node have 8.0 GB together" in refused.reason
    apart = [pair[0], replace(pair[1], machine=b"another!")]
    assert isinstance(plan(big, apart[0], [apart[1]], "m"), SplitPlan)
    # Parts that are limited so that they fit side by side stay as they are, and so do accelerators.
    limited = [replace(known, memory=4 * GB) for known in pair]
    assert [known.memory for known in counted_once(limited)] == [4 * GB, 4 * GB]
    cards = [replace(known, machine_memory=0) for known in pair]
    assert counted_once(cards) == tuple(cards)


def test_speed_of_a_machine_counts_once() -> None:
    one = (on("a", HERE), on("a", ATTIC))
    two = (on("a", HERE), on("b", ATTIC))
    shares = planned(*two).shares
    path = 0.001
    assert seconds_per_token(NEED, one, shares) - path == pytest.approx(
        2 * (seconds_per_token(NEED, two, shares) - path)
    )
