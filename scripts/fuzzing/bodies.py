"""Fuzzes the APIs of a real node with request bodies: a daemon with the engine and a small model, in a home of its own.

Every answer must be of its API's documented shape, the engine must not end, and the memory of both processes must stay
flat. An input with an answer of a new kind is kept in `tests/fuzz/corpora`, and so is one whose answer is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil
import uvloop

from meshllm.tasks import Owner
from scripts.fuzzing.body_client import BodyClient
from scripts.fuzzing.body_judge import Wrong, kind_of_answer
from scripts.fuzzing.body_mutation import Bodies, Case
from tests.daemons import Daemon, daemon
from tests.fuzz import corpus

NAME = "bodies"
RECORDED = Path(__file__).resolve().parents[2] / "tests" / "e2e" / "agent_requests.jsonl"
CONTEXT = "1024"
# Small, so that the engine's cache of prompts is full soon after the start.
MEMORY_GB = "0.5"
CONNECTIONS = 6
# Kept inputs: one for each kind of answer, the shortest.
MAX_KEPT = 500
MAX_KEPT_BYTES = 1500
MAX_FAILURES, MAX_ALIKE = 20, 3
SLOWEST = 5
MAX_TEXT = 40
SAMPLE_SECONDS = 1.0
# Growth from the end of the warm-up, a quarter of the run, to its end: caches of Python and malloc.
DAEMON_GROWTH, ENGINE_GROWTH = 24 << 20, 96 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of daemon and engine after so many requests."""

    requests: int
    daemon: int
    engine: int


@dataclass
class Report:
    """What a run found. `kinds`: the shortest input for each kind of answer; `failures`: inputs, and what was wrong.

    `reached`: at least so many requests reached the engine, because it answered them.
    """

    requests: int = 0
    reached: int = 0
    seconds: float = 0.0
    restarts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: dict[tuple[str, ...], Case] = field(default_factory=dict)
    failures: list[tuple[Case, str]] = field(default_factory=list)
    wrong: int = 0
    memory: list[Memory] = field(default_factory=list)
    slowest: list[tuple[float, Case]] = field(default_factory=list)

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


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2] if values else 0


def recorded() -> list[Case]:
    """The recorded requests of agents, cut: one tool each and short texts, which an engine reads in a moment."""
    found = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    for each in found:
        each["body"]["tools"] = each["body"].get("tools", [])[:1]
    return [Case(each["path"].partition("?")[0], json.dumps(_cut(each["body"])).encode()) for each in found]


def _cut(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _cut(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_cut(value) for value in part]
    return part[:MAX_TEXT] if isinstance(part, str) else part


def read_kept() -> list[Case]:
    """The kept inputs: in each the path, a line break, the body."""
    pairs = (data.partition(b"\n") for data in corpus.read(NAME))
    return [Case(path.decode(), body) for path, _, body in pairs]


def write_kept(cases: Sequence[Case]) -> None:
    """Replace the kept inputs."""
    corpus.write(NAME, [case.path.encode() + b"\n" + case.data for case in cases])


def engine_of(node: Daemon) -> psutil.Process:
    """The engine's process."""
    return next(process for process in node.children() if "llama-server" in process.name())


class Run:
    """Posts cases to a node over several connections at once, and judges the answers."""

    def __init__(self, node: Daemon, rng: Random, *, requests: int, seconds: float, say: bool = False) -> None:
        self._node = node
        self._engine = engine_of(node)
        self._daemon = psutil.Process(node.process.pid)
        self._rng = rng
        self._most, self._say = requests, say
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._first = self._restarts()
        self.report = Report()

    def go(self, kept: Sequence[Case], fresh: bool = True) -> Report:
        """Post the kept cases, then new ones until the bounds are reached, unless not `fresh`."""
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # what was found by then is reported and kept
            uvloop.run(self._go(kept, fresh))
        report = self.report
        report.seconds = time.monotonic() - self._began
        report.restarts = self._restarts() - self._first
        report.reached = report.statuses["200"]
        if not self._engine.is_running() or engine_of(self._node).pid != self._engine.pid:
            report.restarts = max(1, report.restarts)
        return report

    def _restarts(self) -> int:
        """Restarts of the engine, as the node counts them."""
        with urllib.request.urlopen(self._node.base_url.removesuffix("/v1") + "/metrics") as reply:
            text = reply.read().decode()
        counts = re.findall(r"^mesh_llm_engine_restarts_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
        return sum(int(float(count)) for count in counts)

    async def _go(self, kept: Sequence[Case], fresh: bool) -> None:
        bodies = Bodies(self._rng, self._node.model, [*recorded(), *kept])
        waiting = [self._of_model(case) for case in kept]
        owner = Owner("fuzzing")
        lanes = [owner.start(self._lane(bodies, waiting, fresh), f"lane {number}") for number in range(CONNECTIONS)]
        watch = owner.start(self._watch(), "memory")
        try:
            for lane in lanes:
                await lane
        finally:
            watch.cancel()
            await owner.close()

    def _of_model(self, case: Case) -> Case:
        return Case(case.path, case.data.replace(b"@model@", self._node.model.encode()))

    async def _lane(self, bodies: Bodies, waiting: list[Case], fresh: bool) -> None:
        client = BodyClient(self._node.base_url)
        while waiting or (fresh and self._goes_on()):
            case = waiting.pop() if waiting else bodies.next()
            self.report.requests += 1
            await self._ask(client, case, bodies)
        client.close()

    def _goes_on(self) -> bool:
        report = self.report
        if report.wrong >= 200 or not self._engine.is_running():
            return False
        return (not self._most or report.requests < self._most) and time.monotonic() < self._end

    async def _ask(self, client: BodyClient, case: Case, bodies: Bodies) -> None:
        report = self.report
        try:
            began = time.monotonic()
            answer = await client.post(case.path, case.data)
            report.slowest.append((time.monotonic() - began, case))
            report.slowest = sorted(report.slowest, key=lambda pair: -pair[0])[:SLOWEST]
            report.statuses[str(answer.status)] += 1
            kind = kind_of_answer(case.path, answer, streams=_streams(case.data))
        except Wrong as wrong:
            report.wrong += 1
            # Not twenty times the same.
            alike = sum(text == str(wrong) for _, text in report.failures)
            if alike < MAX_ALIKE and len(report.failures) < MAX_FAILURES:
                report.failures.append((case, str(wrong)))
                if self._say:
                    print(f"WRONG {case.path}: {wrong}\n  {case.data[:1500]!r}", flush=True)
            return
        known = report.kinds.get(kind)
        if known is None or len(case.data) < len(known.data):
            report.kinds[kind] = case
            if known is None and len(case.data) <= MAX_KEPT_BYTES:
                bodies.known.append(case)

    async def _watch(self) -> None:
        last = 0.0
        while True:
            report = self.report
            if not self._engine.is_running():
                return
            used = self._daemon.memory_info().rss, self._engine.memory_info().rss
            report.memory.append(Memory(report.requests, *used))
            now = time.monotonic()
            if self._say and now - last >= 30:
                last = now
                rate = report.requests / (now - self._began)
                print(
                    f"{report.requests} requests, {rate:.0f}/s, {len(report.kinds)} kinds of answers, "
                    f"{report.wrong} wrong, daemon {used[0] >> 20} MB, engine {used[1] >> 20} MB",
                    flush=True,
                )
            await asyncio.sleep(SAMPLE_SECONDS)


def _streams(data: bytes) -> bool:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("stream") is True


def keep(report: Report, model: str) -> int:
    """Keep the shortest input of each kind of answer, and those that failed; returns how many are kept."""
    short = [case for case in report.kinds.values() if len(case.data) <= MAX_KEPT_BYTES]
    cases = sorted(short, key=lambda case: len(case.data))[:MAX_KEPT]
    cases += [case for case, _ in report.failures if len(case.data) <= 4 * MAX_KEPT_BYTES]
    write_kept([Case(case.path, case.data.replace(model.encode(), b"@model@")) for case in cases])
    return len(cases)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--minutes", type=float, default=5.0, help="how long at most (default: 5)")
    parser.add_argument("--requests", type=int, default=0, help="how many (default: as many as the time allows)")
    parser.add_argument("--seed", type=int, default=None, help="of the generator (default: another one each time)")


def run(options: argparse.Namespace) -> int:
    """Start a node, fuzz it, keep new inputs. Returns 1 if an answer was wrong, the engine ended or memory grew."""
    from tests.daemons import MODEL

    kept = read_kept()
    with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as folder:
        flags = ("--model", MODEL, "--ctx-size", CONTEXT, "--max-vram", MEMORY_GB, "--no-draft")
        with daemon(Path(folder), *flags) as node:
            node.wait_until_serving()
            seconds = options.minutes * 60
            fuzzing = Run(node, Random(options.seed), requests=options.requests, seconds=seconds, say=True)
            report = fuzzing.go(kept)
    count = keep(report, MODEL)
    daemon_growth, engine_growth = report.growth()
    last = report.memory[-1]
    share = 100 * report.reached // report.requests
    statuses = ", ".join(f"{status}: {number}" for status, number in sorted(report.statuses.items()))
    for line in (
        f"{report.requests} requests in {report.seconds:.0f} s ({report.requests / report.seconds:.0f}/s)",
        f"answered by the engine: {report.reached} ({share} %); its restarts: {report.restarts}",
        f"wrong answers: {report.wrong}; statuses: {statuses}",
        f"{len(report.kinds)} kinds of answers, {count} inputs kept",
        f"memory after a quarter and at the end: daemon {last.daemon - daemon_growth >> 20}, {last.daemon >> 20} MB; "
        f"engine {last.engine - engine_growth >> 20}, {last.engine >> 20} MB",
    ):
        print(line)
    for seconds, case in report.slowest:
        print(f"{seconds:.1f} s: {case.path} {case.data[:300]!r}")
    grown = daemon_growth > DAEMON_GROWTH or engine_growth > ENGINE_GROWTH
    return 1 if report.wrong or report.restarts or grown else 0
