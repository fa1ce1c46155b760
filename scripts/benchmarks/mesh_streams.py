"""The cost of another node for a stream: added time with a fast fake server, tokens/s with a real model.

Each figure is compared with one of the same round that was measured at the host itself. A measurement that did not use
the intended transport (a lane, a QUIC tunnel) is discarded.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from . import engine, report, targets
from .mesh_nodes import NO_LANES, Node, Nodes
from .native import BenchError, load
from .scenarios import Results, Scenario
from .targets import Target

EXPECTED = {"lanes": "lane", "quic": "quic"}
COLUMNS = {"direct": "alone", "lanes": "lanes", "quic": "quic"}
STREAMS = 4


def _joiners(nodes: Nodes, host: Node, model: str) -> dict[str, Node]:
    """Two nodes that have joined the host's mesh and serve nothing: one with lanes, one without."""
    joiners = {
        name: nodes.start(name, "--join", f"@{nodes.invite(host)}", env=env)
        for name, env in (("lanes", {}), ("quic", NO_LANES))
    }
    for joiner in joiners.values():
        joiner.wait_for_hosts(model, 1)
    return joiners


def _check_ways(joiners: dict[str, Node]) -> None:
    for name, joiner in joiners.items():
        if (found := joiner.ways()) != {EXPECTED[name]}:
            raise BenchError(f"requests of the node {name!r} travel by {sorted(found) or 'nothing'}")


def added(nodes: Nodes, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Caller, joiner, host, fake upstream; against caller, host, fake upstream."""
    # The stack of the nodes ends them before what stands behind them.
    upstream = targets.start_upstream(nodes.stack, nodes.scratch)
    host = nodes.start("host", "--backend", f"http://127.0.0.1:{upstream.port}")
    host.wait_for_model("fake")
    joiners = _joiners(nodes, host, "fake")
    ways = [Target("direct", host.port, host.child)]
    ways += [Target(name, node.port, node.child) for name, node in joiners.items()]
    less = 4 if quick else 1
    loads = [
        Scenario("first_event", requests=400 // less, events=1),
        Scenario("answer", requests=400 // less),
        Scenario("flat_out", connections=16, requests=1, events=2000 // less),
    ]
    results = Results()
    for number in range(-1, rounds):  # round -1 warms up: caches, pools, lanes
        for scenario in loads:
            report.progress(f"added time, round {number + 1} of {rounds}: {scenario.name}")
            turn = number % len(ways)
            for way in ways[turn:] + ways[:turn]:
                one = scenario.run(way, nodes.scratch)
                if number >= 0:
                    results.add(scenario.name, way.name, one)
    _check_ways(joiners)
    return _added_figures(results)


def _added_figures(results: Results) -> dict[str, Any]:
    def milliseconds(key: str, which: str) -> Any:
        return lambda one: one[key][which] / 1000

    figures: dict[str, Any] = {"rounds_added": results.rounds}
    for figure, scenario, read in (
        ("first_event_ms", "first_event", milliseconds("first_event_us", "median")),
        ("first_event_p99_ms", "first_event", milliseconds("first_event_us", "p99")),
        ("answer_ms", "answer", milliseconds("total_us", "median")),
    ):
        columns = {"alone": results.value(scenario, "direct", read)}
        columns |= {name: results.added(scenario, name, read) for name in EXPECTED}
        figures[figure] = {column: value for column, value in columns.items() if value is not None}
    speeds = {
        column: results.value("flat_out", name, lambda one: float(one["events_per_s"]))
        for name, column in COLUMNS.items()
    }
    figures["events_per_s"] = {column: value for column, value in speeds.items() if value is not None}
    failures = [results.failures(name) for name in COLUMNS]
    complaint = next((words for _, _, words in failures if words), "")
    return figures | {"failed": sum(count for count, _, _ in failures), "complaint": complaint}


def real(nodes: Nodes, rounds: int, model: str, tokens: int) -> dict[str, Any]:
    """Tokens/s of the real engine on the host, asked at the host and at the joiners."""
    report.progress(f"starting {model} ...")
    host = nodes.start("host", "--model", model)
    host.child.wait_for("answer", lambda: engine.answers(host.port, model), engine.TIMEOUT_S, every=0.05)
    joiners = _joiners(nodes, host, model)
    ports = {"direct": host.port} | {name: node.port for name, node in joiners.items()}
    bodies = engine.bodies(nodes.scratch, model, tokens)
    speeds: dict[str, dict[str, list[float]]] = {"one": {}, "many": {}}
    failed, complaint = 0, ""
    for number in range(-1, rounds):
        report.progress(f"tokens/s, round {number + 1} of {rounds}")
        turn = number % len(ports)
        for name in [*ports][turn:] + [*ports][:turn]:
            for which, streams in (("one", 1), ("many", STREAMS)):
                one = load(ports[name], bodies[:streams], connections=streams, requests=1, stream=True)
                failed, complaint = failed + one["errors"], complaint or one["complaint"]
                if number >= 0:
                    speeds[which].setdefault(name, []).append(streams * tokens / one["seconds"])
    _check_ways(joiners)
    figures: dict[str, Any] = {"rounds_tokens": speeds}
    for which, by_way in speeds.items():
        figures[f"tokens_{which}"] = {COLUMNS[name]: median(values) for name, values in by_way.items()}
        figures[f"ratio_{which}"] = {
            name: median(ours / theirs for ours, theirs in zip(by_way[name], by_way["direct"], strict=True))
            for name in EXPECTED
        }
    return figures | {"failed_streams": failed, "complaint_streams": complaint}
