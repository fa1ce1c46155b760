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
import signal
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import psutil
import uvloop
from rich.progress import Progress

from meshllm import paths
from meshllm.tasks import Owner
from scripts.fuzzing.body_client import BodyClient
from scripts.fuzzing.body_forecast import reaches_engine
from scripts.fuzzing.body_judge import Wrong, kind_of_answer, label_of
from scripts.fuzzing.body_model import NAME as CUT_NAME
from scripts.fuzzing.body_model import write_model
from scripts.fuzzing.body_mutation import Bodies, Case
from scripts.fuzzing.body_report import Memory, Report, lines, save, total
from tests.daemons import MODEL, Daemon, daemon
from tests.fuzz import corpus

NAME = "bodies"
RECORDED = Path(__file__).resolve().parents[2] / "tests" / "e2e" / "agent_requests.jsonl"
MODEL_FILE = f"{MODEL}.Q4_1.gguf"
CONTEXT = "1024"
# Small, so that the engine's cache of prompts is full soon after the start.
MEMORY_GB = "0.25"
CONNECTIONS = 12
# Of these in the engine at once, whose slots are four, and cases that wait for it.
MAX_IN_ENGINE, MAX_PASSING = 3, 200
# Kept inputs: one for each kind of answer, the shortest.
MAX_KEPT = 500
MAX_KEPT_BYTES = 1500
# Bodies that are mutated again; a longer list makes each of them rare.
MAX_KNOWN = 4000
# A run with so many wrong answers ends.
MAX_WRONG = 200
MAX_TEXT = 40
SAMPLE_SECONDS = 1.0
# Growth of the daemon that is worth a line, in bytes.
JUMP = 3 << 20
SAY_EVERY = 25_000


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
    """Posts cases to a node over several connections at once, and judges the answers.

    `share`: at most so much of the requests reach the engine, which takes a hundred times as long as a refusal; more
    of those that the generator makes are dropped. None: all that it makes.
    """

    def __init__(
        self,
        node: Daemon,
        rng: Random,
        *,
        requests: int,
        seconds: float,
        share: float | None = None,
        say: Callable[[str], None] | None = None,
        on_progress: Callable[[Report], None] | None = None,
    ) -> None:
        self._node = node
        self._engine = engine_of(node)
        self._daemon = psutil.Process(node.process.pid)
        self._rng = rng
        self._most, self._share, self._say, self._on_progress = requests, share, say, on_progress
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._first = self._restarts()
        self._in_engine = 0
        self._waiting: list[Case] = []
        self._peak = 0
        # Made and not yet posted: those that the gateway refuses, and those for the engine.
        self._refused: deque[Case] = deque()
        self._passing: deque[Case] = deque(maxlen=MAX_PASSING)
        self.report = Report()

    def go(self, kept: Sequence[Case], fresh: bool = True) -> Report:
        """Post the kept cases, then new ones until the bounds are reached, unless not `fresh`."""
        uvloop.run(self._go(kept, fresh))
        report = self.report
        report.seconds = time.monotonic() - self._began
        if not self._end:
            return report
        report.restarts = self._restarts() - self._first
        if not self._engine.is_running() or engine_of(self._node).pid != self._engine.pid:
            report.restarts = max(1, report.restarts)
        return report

    @property
    def posted_kept(self) -> bool:
        """Whether all kept cases have been posted."""
        return not self._waiting

    def _stop(self) -> None:
        self._end = 0.0

    def _restarts(self) -> int:
        """Restarts of the engine, as the node counts them."""
        with urllib.request.urlopen(self._node.base_url.removesuffix("/v1") + "/metrics") as reply:
            text = reply.read().decode()
        counts = re.findall(r"^mesh_llm_engine_restarts_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
        return sum(int(float(count)) for count in counts)

    async def _go(self, kept: Sequence[Case], fresh: bool) -> None:
        bodies = Bodies(self._rng, self._node.model, [*recorded(), *kept])
        waiting = self._waiting = [self._of_model(case) for case in kept]
        owner = Owner("fuzzing")
        self._sample()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # what was found by then is reported and kept
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        lanes = [owner.start(self._lane(bodies, waiting, fresh), f"lane {number}") for number in range(CONNECTIONS)]
        watch = owner.start(self._watch(), "memory")
        try:
            for lane in lanes:
                await lane
        finally:
            watch.cancel()
            await owner.close()
            self._sample()

    def _of_model(self, case: Case) -> Case:
        return Case(case.path, case.data.replace(b"@model@", self._node.model.encode()))

    async def _lane(self, bodies: Bodies, waiting: list[Case], fresh: bool) -> None:
        client = BodyClient(self._node.base_url)
        while (waiting and self._end) or (fresh and self._goes_on()):
            if waiting:
                case = waiting.pop()
                passes = self._passes(case)
            else:
                case, passes = self._next(bodies)
            self.report.requests += 1
            self.report.posted += passes
            self._in_engine += passes
            await self._ask(client, case, bodies)
            self._in_engine -= passes
        client.close()

    def _passes(self, case: Case) -> bool:
        return reaches_engine(case.path, case.data, self._node.model)

    def _next(self, bodies: Bodies) -> tuple[Case, bool]:
        """The next new case, and whether it will reach the engine."""
        if self._share is None:
            case = bodies.next()
            return case, self._passes(case)
        due = self.report.posted < self._share * self.report.requests and self._in_engine < MAX_IN_ENGINE
        chosen = self._passing if due else self._refused
        while not chosen:
            case = bodies.next()
            (self._passing if self._passes(case) else self._refused).append(case)
        return chosen.popleft(), due

    def _goes_on(self) -> bool:
        report = self.report
        if report.wrong >= MAX_WRONG or not self._engine.is_running():
            return False
        return (not self._most or report.requests < self._most) and time.monotonic() < self._end

    async def _ask(self, client: BodyClient, case: Case, bodies: Bodies) -> None:
        report = self.report
        try:
            began = time.monotonic()
            answer = await client.post(case.path, case.data)
            report.took(time.monotonic() - began, case)
            kind = kind_of_answer(case.path, answer, streams=_streams(case.data))
        except Wrong as wrong:
            if not self._end:  # a stop from the terminal stops the node as well
                report.requests -= 1
                return
            report.codes["wrong"] += 1
            if report.failed(case, str(wrong)) and self._say is not None:
                self._say(f"WRONG {case.path}: {wrong}\n  {case.data[:4000]!r}")
            return
        report.codes[label_of(kind)] += 1
        report.apis[case.path] += 1
        known = report.kinds.get(kind)
        if known is None or len(case.data) < len(known.data):
            report.kinds[kind] = case
            if known is None and len(case.data) <= MAX_KEPT_BYTES and len(bodies.known) < MAX_KNOWN:
                bodies.known.append(case)

    def _sample(self) -> None:
        """Note the memory of both processes, if both run."""
        with contextlib.suppress(psutil.Error):
            used = self._daemon.memory_info().rss, self._engine.memory_info().rss
            self.report.memory.append(Memory(self.report.requests, *used))
            if used[0] > self._peak + JUMP:  # shows the bodies that cost memory
                if self._peak and self._say is not None:
                    self._say(
                        f"the daemon grew by {used[0] - self._peak >> 20} MB before request {self.report.requests}"
                    )
                self._peak = used[0]

    async def _watch(self) -> None:
        said = -1
        while self._engine.is_running():
            report = self.report
            report.seconds = time.monotonic() - self._began
            self._sample()
            if self._say is not None and report.requests // SAY_EVERY > said:
                said = report.requests // SAY_EVERY
                rate = report.requests / report.seconds
                kinds, wrong = len(report.kinds), report.wrong
                self._say(
                    f"{report.requests} requests, {rate:.0f}/s, {kinds} kinds of answers, {wrong} wrong, "
                    f"{report.memory[-1]}"
                )
            if self._on_progress is not None:
                self._on_progress(report)
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
    share = "most requests that the engine gets, %% (default: 5; 100: as many as the generator makes, a fifth)"
    parser.add_argument("--engine", type=float, default=5.0, metavar="PERCENT", help=share)
    layers = "layers of the test model that the engine computes (default: 1; 0: all)"
    parser.add_argument("--layers", type=int, default=1, help=layers)
    totals = "where each run writes its counts, so that runs add up (default: in the cache)"
    parser.add_argument("--totals", type=Path, default=None, metavar="FOLDER", help=totals)


@contextlib.contextmanager
def _node(folder: Path, layers: int) -> Iterator[Daemon]:
    """A node that serves the test model, or its first layers."""
    environment = {}
    model = MODEL
    if layers:
        (folder / "models").mkdir()
        write_model(paths.models() / MODEL_FILE, folder / "models", layers)
        model, environment = CUT_NAME, {"MESH_LLM_MODELS": str(folder / "models")}
    flags = ("--model", model, "--ctx-size", CONTEXT, "--max-vram", MEMORY_GB, "--no-draft")
    with daemon(folder / "home", *flags, environment=environment) as node:
        node.model = model
        yield node.wait_until_serving(model)


def run(options: argparse.Namespace) -> int:
    """Start a node, fuzz it, keep new inputs. Returns 1 if an answer was wrong, the engine ended or memory grew."""
    seed = options.seed if options.seed is not None else Random().getrandbits(32)
    totals = options.totals or paths.cache() / "fuzz" / NAME
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{seed}"
    with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as folder, _node(Path(folder), options.layers) as node:
        with Progress(disable=not sys.stdout.isatty()) as progress:
            bar = progress.add_task("bodies", total=options.requests or None)

            def note(report: Report) -> None:
                progress.update(bar, completed=report.requests)
                save(totals, name, report, seed=seed)

            def say(line: str) -> None:
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

            share = None if options.engine >= 100 else options.engine / 100
            fuzzing = Run(
                node,
                Random(seed),
                requests=options.requests,
                seconds=options.minutes * 60,
                share=share,
                say=say,
                on_progress=note,
            )
            report = fuzzing.go(read_kept())
        save(totals, name, report, seed=seed)
        # A run that was stopped before it had posted the kept inputs keeps those.
        count = keep(report, node.model) if fuzzing.posted_kept else "the earlier"
    for line in (
        f"seed {seed}",
        *lines(report),
        f"{len(report.kinds)} kinds of answers, {count} inputs kept",
        total(totals),
    ):
        print(line)
    return 1 if report.wrong or report.restarts or report.grew() else 0
