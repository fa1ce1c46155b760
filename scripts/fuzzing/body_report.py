"""What runs of the APIs' fuzzer found: one report per run, and their sum over several runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.fuzzing.body_mutation import Case

MAX_FAILURES, MAX_ALIKE = 20, 3
SLOWEST = 5
# Growth from the end of the warm-up, a quarter of the run, to its end: caches of Python and malloc, and the engine's
# cache of prompts, which a short run does not fill in its first quarter.
DAEMON_GROWTH, ENGINE_GROWTH = 16 << 20, 96 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of daemon and engine after so many requests."""

    requests: int
    daemon: int
    engine: int

    def __str__(self) -> str:
        return f"daemon {self.daemon >> 20} MB, engine {self.engine >> 20} MB"


@dataclass
class Report:
    """What a run found. `kinds`: the shortest input for each kind of answer; `failures`: inputs, and what was wrong.

    `posted`: requests that the gateway's own code let pass to the engine; `codes`: answers by status and code.
    """

    requests: int = 0
    posted: int = 0
    seconds: float = 0.0
    restarts: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    apis: Counter[str] = field(default_factory=Counter)
    kinds: dict[tuple[str, ...], Case] = field(default_factory=dict)
    failures: list[tuple[Case, str]] = field(default_factory=list)
    wrong: int = 0
    memory: list[Memory] = field(default_factory=list)
    slowest: list[tuple[float, Case]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Requests with status 200."""
        return self.codes["200"]

    def took(self, seconds: float, case: Case) -> None:
        """Note the duration of a request."""
        if len(self.slowest) < SLOWEST or seconds > self.slowest[-1][0]:
            self.slowest = sorted([*self.slowest, (seconds, case)], key=lambda pair: -pair[0])[:SLOWEST]

    def failed(self, case: Case, why: str) -> bool:
        """Note a wrong answer. Returns whether it is kept: not twenty times the same."""
        self.wrong += 1
        alike = sum(text == why for _, text in self.failures)
        if alike >= MAX_ALIKE or len(self.failures) >= MAX_FAILURES:
            return False
        self.failures.append((case, why))
        return True

    def growth(self) -> tuple[int, int]:
        """Bytes that the processes grew by after the first quarter of the samples: their medians at its end and at
        the end of the run."""
        samples = self.memory
        part = max(1, len(samples) // 8)
        early, late = samples[len(samples) // 4 :][:part], samples[-part:]
        return (
            _median([sample.daemon for sample in late]) - _median([sample.daemon for sample in early]),
            _median([sample.engine for sample in late]) - _median([sample.engine for sample in early]),
        )

    def grew(self) -> str:
        """Which process grew too much, and by how much; empty if none."""
        daemon, engine = self.growth()
        found = []
        for name, grown, bound in (("daemon", daemon, DAEMON_GROWTH), ("engine", engine, ENGINE_GROWTH)):
            if grown > bound:
                found.append(f"the {name} grew by {grown >> 20} MB after the first quarter (bound {bound >> 20})")
        return "; ".join(found)


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2] if values else 0


def lines(report: Report) -> Iterable[str]:
    """A finished run in words."""
    requests, rate = report.requests, report.requests / max(report.seconds, 0.001)
    yield f"{requests} requests in {report.seconds:.0f} s ({rate:.0f}/s); engine restarts: {report.restarts}"
    yield _share(requests, report.posted, report.answered)
    yield f"wrong answers: {report.wrong}; by status and code: {_counts(report.codes)}"
    yield f"by API: {_counts(report.apis)}"
    if report.memory:
        daemon, engine = report.growth()
        first, last = report.memory[0], report.memory[-1]
        yield f"memory at the start: {first}; at the end: {last}"
        yield f"growth after the first quarter: daemon {daemon / 2**20:+.1f} MB, engine {engine / 2**20:+.1f} MB"
    if grew := report.grew():
        yield f"NOT FLAT: {grew}"
    for seconds, case in report.slowest:
        yield f"{seconds:.1f} s: {case.path} {case.data[:200]!r}"


def _share(requests: int, posted: int, answered: int) -> str:
    percent = 100 * posted / max(1, requests)
    passed = f"let pass to the engine: {posted} ({percent:.1f} %)"
    return f"{passed}; refused by the gateway: {requests - posted}; status 200: {answered}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {number}" for name, number in counts.most_common())


# -- several runs


def save(folder: Path, name: str, report: Report, *, seed: int) -> None:
    """Write the report of a run, or what there is of it so far, so that runs add up."""
    folder.mkdir(parents=True, exist_ok=True)
    last = report.memory[-1] if report.memory else Memory(0, 0, 0)
    daemon, engine = report.growth()
    facts = {
        "requests": report.requests, "posted": report.posted, "seconds": round(report.seconds), "seed": seed,
        "restarts": report.restarts, "wrong": report.wrong, "codes": dict(report.codes),
        "daemon": last.daemon, "engine": last.engine, "daemon_growth": daemon, "engine_growth": engine,
    }  # fmt: skip
    new = folder / f"{name}.new"
    new.write_text(json.dumps(facts))
    new.replace(folder / f"{name}.json")


def total(folder: Path) -> str:
    """All runs in a folder, in words."""
    found: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    codes: Counter[str] = Counter()
    for each in found:
        codes.update(each["codes"])
    sums = {key: sum(each[key] for each in found) for key in ("requests", "posted", "seconds", "restarts", "wrong")}
    return (
        f"all {len(found)} runs kept in {folder.name}: {sums['requests']} requests in {sums['seconds']} s; "
        f"engine restarts: {sums['restarts']}; wrong answers: {sums['wrong']}; "
        f"{_share(sums['requests'], sums['posted'], codes['200'])}; by status and code: {_counts(codes)}"
    )
