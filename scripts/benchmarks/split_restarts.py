"""`scripts/bench split-restarts`: host and worker of a split are restarted at random distances, as after a power cut.

Both daemons end, by SIGTERM or SIGKILL, and are started again in random order, without `--join`. Measured from the last
start: until the split is served, and until a request sent at once has its answer. The first start of the run, with both
at the same time, is the baseline.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from . import report, split_engine
from .native import BenchError
from .split_daemons import Daemons, Here, Node

MOST_SECONDS = 10.0  # between the two starts
BAR_SECONDS = 10.0
PLAIN = "--no-speculation"


@dataclass(frozen=True)
class Restart:
    """One restart: how the daemons ended, which came first, how much later the other; `served` and `answered` are
    seconds after the later one was started. `status` of the answer: 200, or the error that the caller got."""

    ended: str
    first: str
    distance: float
    served: float
    answered: float
    status: str

    def row(self, number: int) -> list[str]:
        """For people."""
        return [
            str(number),
            self.ended,
            self.first,
            f"{self.distance:.1f} s",
            f"{self.served:.1f} s",
            f"{self.answered:.1f} s",
            self.status,
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--restarts", type=int, default=30, help="how often (default 30)")
    parser.add_argument("--seed", type=int, default=1, help="chooses distances, order and how the daemons end")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a split was not served again in time."""
    model: Path = options.model or split_engine.default_model()
    chance = random.Random(options.seed)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-")))
        pair = Pair(Daemons(stack, scratch, model))
        base = pair.begin()
        found = []
        for number in range(options.restarts):
            report.progress(f"restart {number + 1} of {options.restarts}")
            found.append(pair.restart(chance))
    report.progress("")
    served = sorted(one.served for one in found)
    late = sum(one.served > BAR_SECONDS for one in found)
    bars = [
        report.bar(
            f"{len(found)} restarts: not served within {BAR_SECONDS:.0f} s", late, 0, at_most=True, shape="{:.0f}"
        ),
        report.bar("served again, x the first start (median)", median(served) / base, 2.0, at_most=True),
        report.bar(
            "answers that are errors", sum(one.status != "200" for one in found), 0, at_most=True, shape="{:.0f}"
        ),
    ]
    notes = [f"first start {base:.1f} s; served again: median {median(served):.1f} s, longest {served[-1]:.1f} s"]
    notes += [f"an error: {error[:300]}" for error in dict.fromkeys(pair.errors)]
    if options.json:
        print(report.as_json("split-restarts", bars, model=model.name, first=base, restarts=[asdict(o) for o in found]))
    else:
        columns = ["", "ended by", "first", "other after", "served", "answered", "status"]
        rows = [one.row(number) for number, one in enumerate(found, 1)]
        report.show(f"restarts of a split: {model.name}", columns, rows, bars, notes)
    return int(late > 0)


class Pair:
    """A host and a worker, and their homes."""

    def __init__(self, daemons: Daemons) -> None:
        self._daemons = daemons
        self._nodes: dict[str, Node] = {}
        self.errors: list[str] = []

    def begin(self) -> float:
        """The first start: the worker founds the mesh. Returns the seconds from the host's start until it serves."""
        worker = self._daemons.worker(Here(), "worker")
        began = time.monotonic()
        host = self._daemons.host(Here(), "host", PLAIN, join=worker)
        host.wait_until_split()
        took = time.monotonic() - began
        self._nodes = {"host": host, "worker": worker}
        for node in self._nodes.values():
            node.child.wait_for("peers on its disk", partial(_knows_peers, node.home))
        return took

    def restart(self, chance: random.Random) -> Restart:
        """One restart."""
        ended = chance.choice(["SIGTERM", "SIGKILL"])
        order = chance.sample(list(self._nodes), 2)
        distance = chance.uniform(0.0, MOST_SECONDS)
        for node in self._nodes.values():
            _end(node, ended)
        begun = self._start(order[0])
        time.sleep(max(0.0, distance - (time.monotonic() - begun)))  # the distance is what is varied
        begun = self._start(order[1])
        with ThreadPoolExecutor(1) as callers:
            answer = callers.submit(self._ask, begun)
            self._nodes["host"].wait_until_split()
            served = time.monotonic() - begun
            answered, status = _result(answer)
        return Restart(ended, order[0], distance, served, answered, status)

    def _start(self, name: str) -> float:
        """Start one again in its home, without an invite; when that was."""
        old = self._nodes[name]
        self._nodes[name] = self._daemons.start(old.place, name, *old.options, home=old.home)
        return time.monotonic()

    def _ask(self, begun: float) -> tuple[float, str]:
        """A request to the host as soon as it listens: seconds until its answer, and "200" or the error."""
        host = self._nodes["host"]
        host.wait_for("a listening host", lambda status: True)
        try:
            host.complete("Once upon a time", 1)
        except BenchError as error:
            self.errors.append(str(error))
            return time.monotonic() - begun, "error"
        return time.monotonic() - begun, "200"


def _knows_peers(home: Path) -> bool:
    return bool(json.loads((home / "mesh.json").read_text())["peers"])


def _end(node: Node, by: str) -> None:
    if by == "SIGKILL":
        node.child.process.kill()
    node.child.stop()


def _result(answer: Future[tuple[float, str]]) -> tuple[float, str]:
    try:
        return answer.result()
    except OSError as error:
        return float("inf"), repr(error)
