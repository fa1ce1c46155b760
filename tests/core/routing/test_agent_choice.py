"""The model of an agent that was started without `--model`."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, permutations

import pytest

from meshllm.core.routing.agent_choice import MAX_OUTPUT, WANTED_CONTEXT, AgentModel, choose_model

GOOD = AgentModel(
    "good", context=65_536, size=5 * 10**9, tools=True, free_slots=2, rtt_ms=0.0, calls_tools=True, speed=20.0
)
UNTESTED = replace(GOOD, name="untested", calls_tools=None)


@pytest.mark.parametrize(
    "worse",
    [
        replace(GOOD, name="a", calls_tools=None, size=9 * 10**9),
        replace(GOOD, name="a", calls_tools=False, size=9 * 10**9),
        replace(GOOD, name="a", context=WANTED_CONTEXT - 1, size=9 * 10**9),
        replace(GOOD, name="a", context=0, size=9 * 10**9),
        replace(GOOD, name="a", size=3 * 10**9, speed=90.0),
        replace(GOOD, name="a", loaded=False, speed=90.0),
        replace(GOOD, name="a", speed=10.0, size=51 * 10**8),
        replace(GOOD, name="a", speed=None),
        replace(GOOD, name="a", size=49 * 10**8),
        replace(GOOD, name="a", free_slots=0),
        replace(GOOD, name="a", rtt_ms=20.0),
        replace(GOOD, name="a", rtt_ms=None),
        replace(GOOD, name="h"),
    ],
)
def test_each_criterion_decides_where_those_before_are_equal(worse: AgentModel) -> None:
    for models in ([GOOD, worse], [worse, GOOD]):
        choice = choose_model(models)
        assert choice is not None
        assert choice.model == GOOD


def test_criteria_are_ordered_and_the_order_of_models_is_no_matter() -> None:
    ranked = [
        replace(GOOD, name="tools", size=10**9),
        replace(GOOD, name="short", context=16_384, size=10**9),
        replace(GOOD, name="shorter", context=8_192, size=90 * 10**9),
        replace(UNTESTED, name="rendered", size=98 * 10**9),
        replace(UNTESTED, name="unknown", tools=None, size=99 * 10**9),
        replace(GOOD, name="none", calls_tools=False, size=200 * 10**9),
        replace(UNTESTED, name="not rendered", tools=False, size=100 * 10**9),
        replace(GOOD, name="too short", context=4_096, size=100 * 10**9),
    ]
    for models in (ranked, ranked[::-1], *islice(permutations(ranked), 0, None, 997)):
        left = list(models)
        for expected in ranked:
            choice = choose_model(left)
            assert choice is not None
            assert choice.model == expected
            left.remove(expected)
    assert choose_model([]) is None


def test_reason_is_one_line_that_says_what_decided() -> None:
    choice = choose_model([GOOD, replace(GOOD, name="small", size=10**9)])
    assert choice is not None
    assert choice.reason == "good: the best of 2 models (it calls tools, context 65,536, 5.0 GB, 20 tokens/s)."
    reasons = [choose_model([replace(UNTESTED, calls_tools=calls)]) for calls in (None, False)]
    assert [found.reason.partition("(")[2].partition(",")[0] for found in reasons if found is not None] == [
        "its chat template renders tools",
        "it made no tool call in its test",
    ]
    busy = choose_model([AgentModel("x", free_slots=0)])
    assert busy is not None
    assert busy.reason == (
        "x: the only model (nothing is known about its tools, context unknown, all its slots are in use)."
    )


def test_output_is_a_quarter_of_the_context_and_bounded() -> None:
    assert [AgentModel("a", context=context).output for context in (0, 8192, 32_768, 10**6)] == [
        0,
        2048,
        8192,
        MAX_OUTPUT,
    ]
