"""`scripts/bench gateway`: the cost of the gateway between a client and a server, and that of other proxies.

Targets take turns within each round, and their order rotates, so that other load of the machine affects all alike.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import report, targets
from .native import BenchError, compiled
from .scenarios import Report, Results, Scenario, scenarios
from .targets import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--quick", action="store_true", help="short run, less precise")
    parser.add_argument("--rounds", type=int, help="rounds over all targets (default 5; quick 2)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=["ours", "nginx", "aiohttp"],
        help="leave a target out (repeatable)",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="DIR",
        help="compare with mesh-llm of another checkout: times and rates within 1.10, CPU per event within 1.05",
    )
    parser.add_argument(
        "--turns",
        type=int,
        metavar="N",
        help="with --baseline: compare with it alone, in N rounds of short turns, on a machine with other load",
    )
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="measure another proxy too; {port} and {upstream} stand for the ports (repeatable)",
    )


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 when a request failed or mesh-llm did not start."""
    if options.turns and options.baseline is None:
        raise BenchError("--turns compares with another version: add --baseline DIR")
    if options.turns:
        options.without += ["nginx", "aiohttp"]
    rounds = options.turns or options.rounds or (2 if options.quick else 5)
    notes: list[str] = []
    compiled("load")
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch_name, ExitStack() as stack:
        scratch = Path(scratch_name)
        under_test = _start_targets(stack, scratch, options, notes)
        results = _measure(under_test, scenarios(16 if options.turns else 4 if options.quick else 1), rounds, scratch)
    names = [target.name for target in under_test]
    failed = any(results.failures(name)[0] for name in names) or ("ours" not in (*names, *options.without))
    bars = _bars(results, names)
    notes += [_failure_note(results, name) for name in names if results.failures(name)[0]]
    if options.json:
        print(report.as_json("gateway", bars, targets=names, summary=_summary(results, names), notes=notes,
                             rounds=results.rounds))  # fmt: skip
    else:
        columns = ["", *names]
        report.show(f"gateway: medians of {rounds} rounds", columns, _rows(results, names), bars, notes)
    return int(failed)


def _start_targets(stack: ExitStack, scratch: Path, options: argparse.Namespace, notes: list[str]) -> list[Target]:
    direct = targets.start_upstream(stack, scratch)
    found = [direct]
    if "ours" not in options.without:
        try:
            found.append(targets.start_ours(stack, scratch, direct.port))
        except BenchError as error:
            notes.append(f"mesh-llm was not measured: {error}")
    if options.baseline is not None:
        found.append(targets.start_baseline(stack, scratch, direct.port, options.baseline.resolve()))
    if "nginx" not in options.without:
        nginx = targets.start_nginx(stack, scratch, direct.port)
        found += [nginx] if nginx else []
        if nginx is None:
            notes.append("nginx is not installed: no baseline of it (apt install nginx-light, brew install nginx)")
    if "aiohttp" not in options.without:
        found.append(targets.start_aiohttp(stack, scratch, direct.port))
    found += [targets.start_other(stack, scratch, direct.port, wish) for wish in options.other]
    return found


def _measure(under_test: list[Target], loads: list[Scenario], rounds: int, scratch: Path) -> Results:
    results = Results()
    for target in under_test:  # warm caches, pools and interpreters
        Scenario("warm_up", connections=4, requests=100).run(target, scratch)
        Scenario("warm_up", connections=4, requests=2, events=100).run(target, scratch)
    for number in range(rounds):
        for scenario in loads:
            report.progress(f"round {number + 1} of {rounds}: {scenario.name}")
            first = number % len(under_test)
            for target in under_test[first:] + under_test[:first]:
                results.add(scenario.name, target.name, scenario.run(target, scratch))
    report.progress("")
    return results


def _microseconds(key: str, which: str) -> Any:
    return lambda one: one[key][which] / 1000


def _per_second(key: str) -> Any:
    def read(one: Report) -> float:
        return float(one[key])

    return read


# What is shown: a caption, the scenario, what to read, and how it compares.
_ADDED = [
    ("first byte, added ms, median", "first_byte", _microseconds("first_byte_us", "median")),
    ("first byte, added ms, p99", "first_byte", _microseconds("first_byte_us", "p99")),
    ("32 KiB request, added ms, median", "first_byte_32k", _microseconds("first_byte_us", "median")),
    ("first SSE event, added ms, median", "first_event", _microseconds("first_event_us", "median")),
    ("first SSE event, added ms, p99", "first_event", _microseconds("first_event_us", "p99")),
    ("first SSE event, 16 paced streams, added ms", "paced", _microseconds("first_event_us", "median")),
]
_RATES = [
    ("requests/s, 32 connections", "throughput", _per_second("requests_per_s")),
    ("events/s, 16 streams flat out", "flat_out", _per_second("events_per_s")),
]
_COSTS = [
    ("CPU s per 100k events, flat out", "flat_out", "events"),
    ("CPU s per 100k events, 16 x 500/s", "paced", "events"),
    ("CPU s per 100k requests, 32 connections", "throughput", "requests"),
]


def _shown(value: float | None, shape: str) -> str:
    return "-" if value is None else shape.format(value)


def _rows(results: Results, names: list[str]) -> list[list[str]]:
    rows = []
    for caption, scenario, read in _ADDED:
        row = [caption, f"({_shown(results.value(scenario, 'direct', read), '{:.3f}')})"]
        rows.append(row + [_shown(results.added(scenario, name, read), "{:.3f}") for name in names[1:]])
    for caption, scenario, read in _RATES:
        rows.append([caption, *(_shown(results.value(scenario, name, read), "{:,.0f}") for name in names)])
        for to in ("direct", "nginx"):
            if to in names:
                ratios = [results.ratio(scenario, name, to, read) for name in names]
                rows.append([f"    x {to}", *(_shown(ratio, "{:.2f}") for ratio in ratios)])
    for caption, scenario, of in _COSTS:
        rows.append([caption, *(_shown(results.cpu_per_100k(scenario, name, of), "{:.2f}") for name in names)])
    rows.append(["failed of all requests", *("{} of {:,}".format(*results.failures(name)[:2]) for name in names)])
    return rows


def _summary(results: Results, names: list[str]) -> dict[str, dict[str, float | None]]:
    return {
        name: {
            **{caption: results.added(scenario, name, read) for caption, scenario, read in _ADDED},
            **{caption: results.value(scenario, name, read) for caption, scenario, read in _RATES},
            **{
                f"{caption}, x direct": results.ratio(scenario, name, "direct", read)
                for caption, scenario, read in _RATES
            },
            **{caption: results.cpu_per_100k(scenario, name, of) for caption, scenario, of in _COSTS},
        }
        for name in names
    }


def _bars(results: Results, names: list[str]) -> list[report.Bar]:
    if "ours" not in names:
        return []
    _, scenario, first_byte = _ADDED[0]
    added = results.added(scenario, "ours", first_byte)
    bars = [report.bar("first byte, added median, ms", added, 0.35, at_most=True)]
    if "nginx" in names:
        nginx = results.added(scenario, "nginx", first_byte)
        times = added / nginx if added is not None and nginx else None
        bars.append(report.bar("the goal: added median, x nginx's", times, 1.2, at_most=True))
        _, scenario, events = _RATES[1]
        ratio = results.ratio(scenario, "ours", "nginx", events)
        bars.append(report.bar("events/s, 16 streams, x nginx's", ratio, 1.0, at_most=False))
    if "baseline" in names:
        bars += _baseline_bars(results)
    errors, _, _ = results.failures("ours")
    return [*bars, report.bar("failed requests", errors, 0, at_most=True, shape="{:.0f}")]


def _cpu_per(of: str) -> Any:
    return lambda one: one["target_cpu_s"] / one[of]


def _baseline_bars(results: Results) -> list[report.Bar]:
    """This version against that of the other checkout, round by round; added times by their medians."""
    bars = []
    for caption, scenario, read in (_ADDED[0], _ADDED[3]):
        ours, before = (results.added(scenario, name, read) for name in ("ours", "baseline"))
        times = ours / before if ours is not None and before else None
        bars.append(report.bar(f"{caption}, x baseline's", times, 1.10, at_most=True))
        found = results.ratios(scenario, "ours", "baseline", read)
        bars.append(_compared(caption.replace("added ms", "with the time of the server"), found, 1.10, at_most=True))
    for caption, scenario, read in _RATES:
        found = results.ratios(scenario, "ours", "baseline", read)
        bars.append(_compared(caption, found, 1 / 1.10, at_most=False))
    for caption, scenario, of in _COSTS:
        found = results.ratios(scenario, "ours", "baseline", _cpu_per(of))
        bars.append(_compared(caption, found, 1.05, at_most=True))
    return bars


def _compared(caption: str, ratios: tuple[float, float, float] | None, wanted: float, *, at_most: bool) -> report.Bar:
    low, middle, high = ratios or (None, None, None)
    quartiles = f", quartiles {low:.2f} and {high:.2f}" if ratios else ""
    return report.bar(f"{caption}, x baseline's{quartiles}", middle, wanted, at_most=at_most)


def _failure_note(results: Results, name: str) -> str:
    errors, requests, complaint = results.failures(name)
    return f"{name}: {errors} of {requests} requests failed; the first: {complaint}"
