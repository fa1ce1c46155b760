"""The load scenarios of `scripts/bench gateway`, and the figures read from each.

A figure is compared only with one of the same round; the reported value is the median over the rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .native import load
from .targets import Target

Report = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """One load. `events` is the number of streamed events asked for, 0 for a plain reply."""

    name: str
    connections: int = 1
    requests: int = 0
    seconds: float = 0.0
    events: int = 0
    pace_us: int = 0
    prompt_bytes: int = 40

    def body(self, scratch: Path) -> Path:
        """The file with the request's body."""
        text = ("A mesh of many machines. " * (self.prompt_bytes // 25 + 1))[: self.prompt_bytes]
        body: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": text}]}
        if self.events:
            body |= {"stream": True, "max_tokens": self.events}
        if self.pace_us:
            body["pace_us"] = self.pace_us
        file = scratch / f"{self.name}.json"
        file.write_text(json.dumps(body))
        return file

    def run(self, target: Target, scratch: Path) -> Report:
        """Load `target`; the generator's report, and the CPU seconds that the target's process took meanwhile."""
        before = target.child.cpu_seconds()
        report = load(
            target.port,
            [self.body(scratch)],
            connections=self.connections,
            requests=self.requests,
            seconds=self.seconds,
            stream=bool(self.events),
            events=self.events + 1 if self.events else None,  # the first event carries the role
        )
        report["target_cpu_s"] = target.child.cpu_seconds() - before
        return report


def scenarios(less: int = 1) -> list[Scenario]:
    """All of them, in the order they are run in; `less`: how much shorter than usual."""
    return [
        Scenario("first_byte", requests=2000 // less),
        Scenario("first_byte_32k", requests=1000 // less, prompt_bytes=32 << 10),
        Scenario("throughput", connections=32, seconds=2 / less),
        Scenario("first_event", requests=1000 // less, events=1),
        Scenario("flat_out", connections=16, requests=1, events=4000 // less),
        Scenario("paced", connections=16, requests=1, events=1000 // less, pace_us=2000),
    ]


class Results:
    """Reports by scenario and target, one of each for every round."""

    def __init__(self) -> None:
        self.rounds: dict[str, dict[str, list[Report]]] = {}

    def add(self, scenario: str, target: str, report: Report) -> None:
        """Keep one report; those of a round are added before those of the next."""
        self.rounds.setdefault(scenario, {}).setdefault(target, []).append(report)

    def failures(self, target: str) -> tuple[int, int, str]:
        """Requests that failed, requests made, and what was wrong with the first that did."""
        reports = [report for by_target in self.rounds.values() for report in by_target.get(target, ())]
        first = next((report["complaint"] for report in reports if report["complaint"]), "")
        return sum(report["errors"] for report in reports), sum(report["requests"] for report in reports), first

    def value(self, scenario: str, target: str, read: Callable[[Report], float]) -> float | None:
        """Median over the rounds, or None when a round has no such number (every request failed)."""
        try:
            return median(read(report) for report in self.rounds[scenario][target])
        except (KeyError, TypeError):
            return None

    def added(self, scenario: str, target: str, read: Callable[[Report], float]) -> float | None:
        """Median over the rounds of the difference to "direct"."""
        found = self._paired(scenario, target, "direct", read, lambda ours, theirs: ours - theirs)
        return median(found) if found else None

    def ratio(self, scenario: str, target: str, to: str, read: Callable[[Report], float]) -> float | None:
        """Median over the rounds of the quotient."""
        found = self.ratios(scenario, target, to, read)
        return found[1] if found is not None else None

    def ratios(
        self, scenario: str, target: str, to: str, read: Callable[[Report], float]
    ) -> tuple[float, float, float] | None:
        """Quartiles over the rounds of the quotient."""
        return _quartiles(self._paired(scenario, target, to, read, lambda ours, theirs: ours / theirs))

    def _paired(
        self,
        scenario: str,
        target: str,
        to: str,
        read: Callable[[Report], float],
        combine: Callable[[float, float], float],
    ) -> list[float] | None:
        by_target = self.rounds.get(scenario, {})
        try:
            pairs = zip(by_target[target], by_target[to], strict=True)
            return [combine(read(ours), read(theirs)) for ours, theirs in pairs]
        except (KeyError, TypeError, ZeroDivisionError):
            return None

    def cpu_per_100k(self, scenario: str, target: str, of: str) -> float | None:
        """CPU seconds of the target's process for 100,000 `of` ("events", "requests")."""
        reports = self.rounds.get(scenario, {}).get(target, [])
        count = sum(report[of] for report in reports)
        return float(sum(report["target_cpu_s"] for report in reports)) / count * 1e5 if count else None


def _quartiles(values: list[float] | None) -> tuple[float, float, float] | None:
    if not values:
        return None
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high
