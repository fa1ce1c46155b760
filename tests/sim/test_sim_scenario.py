"""The language of scenarios: what is understood, and what is refused with words that help."""

from __future__ import annotations

import pytest

from tests.sim.scenario import Nodes, ScenarioError, parse


def test_settings_come_before_the_first_action() -> None:
    scenario = parse("nodes 100\nclients 3\nseed 7\nskew 1%\nloss 10% late\ndelay 1ms..2s\nmesh 50..51\nwait 1s")
    assert (scenario.nodes, scenario.clients, scenario.seed) == (100, 3, 7)
    assert (scenario.skew, scenario.loss, scenario.late) == (0.01, 0.1, True)
    assert scenario.delay == (0.001, 2.0)
    assert scenario.apart == Nodes((50, 51))
    assert [step.verb for step in scenario.steps] == ["wait"]


def test_scenario_ignores_comments_and_empty_lines() -> None:
    assert parse("\n# nothing\n   \nwait 1s # a second").steps[0].seconds == 1.0


def test_at_waits_and_then_does_the_rest() -> None:
    first, second = parse("at 10s kill 3").steps
    assert (first.verb, first.seconds) == ("at", 10.0)
    assert (second.verb, second.nodes) == ("kill", Nodes((3,)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("wait 5ms", 0.005), ("wait 2min", 120.0), ("wait 1h", 3600.0), ("wait 12 rounds", 12.0), ("wait 0.5s", 0.5)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse(text).steps[0].seconds == seconds


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("kill 3", Nodes((3,))),
        ("kill 1,3..5", Nodes((1, 3, 4, 5))),
        ("kill all", Nodes(word="all")),
        ("kill random 4", Nodes(word="random", count=4)),
        ("restart them", Nodes(word="them")),
    ],
)
def test_nodes(text: str, nodes: Nodes) -> None:
    assert parse(text).steps[0].nodes == nodes


def test_cuts_go_one_way_or_both() -> None:
    both, one = parse("cut 0..4 | 5..9\ncut 1 > 2").steps
    assert (both.nodes, both.others, both.flag) == (Nodes((0, 1, 2, 3, 4)), Nodes((5, 6, 7, 8, 9)), False)
    assert (one.nodes, one.others, one.flag) == (Nodes((1,)), Nodes((2,)), True)


def test_expectations() -> None:
    gone, known, deaths, one, whole = parse(
        "expect within 5s gone 7\nexpect within 12 rounds known a\nexpect deaths 0\nexpect one mesh\nexpect whole"
    ).steps
    assert (gone.name, gone.nodes, gone.seconds) == ("gone", Nodes((7,)), 5.0)
    assert (known.name, known.seconds) == ("known a", 12.0)
    assert (deaths.name, deaths.number) == ("deaths", 0)
    assert (one.name, whole.name) == ("one mesh", "whole")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wait 1s\nfly 3", "line 2: no such verb: fly"),
        ("kill", "line 1: nodes is missing at the end"),
        ("kill x", "nodes are written"),
        ("kill 9..3", "counts down"),
        ("kill 10", "there are 10 nodes, counted from 0"),
        ("kill 3 4", "nothing may follow before '4'"),
        ("wait 3", "a time is a number and one of"),
        ("wait s", "a time is a number and one of"),
        ("loss 10", "percentage below 100"),
        ("loss 100%", "percentage below 100"),
        ("loss x%", "percentage below 100"),
        ("nodes many", "nodes is a whole number, not 'many'"),
        ("delay 5ms", "a span of times is written"),
        ("cut 1 & 2", "a cut is written"),
        ("join 3", "join needs ways in"),
        ("churn 5", "churn needs a time"),
        ("expect", "a condition is missing"),
        ("expect luck", "no such condition: luck"),
        ("wait 1s\nnodes 5", "line 2: no such verb: nodes"),
    ],
)
def test_scenario_error_names_its_line(text: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("line ")


def test_ways_in_are_given_or_remembered() -> None:
    given, remembered = parse("start 0 through 1..2 over 3s\nstart 1 knowing 5").steps
    assert (given.others, given.flag, given.seconds) == (Nodes((1, 2)), False, 3.0)
    assert (remembered.others, remembered.flag) == (Nodes((5,)), True)


def test_scenario_may_have_a_dead_bootstrap_address() -> None:
    assert parse("start 0 through 600").steps[0].others == Nodes((600,))
