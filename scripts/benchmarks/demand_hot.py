"""A busy host, and a standby that joins it: how long streams wait for a slot (`scripts/bench demand`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median, quantiles
from threading import Event, Lock

from . import report
from .demand_calls import Answer, ask, errors
from .demand_nodes import MODEL, TIMEOUT_S, Part, environment, folder_with_model, loaded, wait_until_loaded
from .mesh_nodes import Node, Nodes

STREAMS = 16
TOKENS = 24
FALL = 1 / 3
# One thread for each engine: the two cores of this machine play two machines.
COMMON = ("--threads", "1")
NOTE = (
    "hot: both engines share this machine's processor, so speed says nothing: queue time is from the request to the "
    "first token, less that time on the idle host"
)


def hot(nodes: Nodes, *, quick: bool) -> Part:
    """p95 of the queue time of 16 concurrent streams, before and after a standby took the model as well."""
    folder, seconds = folder_with_model(nodes.scratch), 20.0 if quick else 60.0
    report.progress("hot: one host")
    host = nodes.start("host", "--model", MODEL, "--ctx-size", "1024", *COMMON, env=environment(folder))
    wait_until_loaded(host, MODEL)
    idle = median(_first(ask(host.port, MODEL, stream=True, tokens=1, prompt=f"Question {n}.")) for n in range(5))
    with _streams(host) as answers:
        alone = _watch(answers, seconds, "one host")
        began = time.monotonic()
        words = ("--join", f"@{nodes.invite(host)}", *COMMON)
        standby = nodes.start("standby", *words, env=environment(folder))
        report.progress("hot: until the standby serves, too")
        standby.child.wait_for("a second host", lambda: loaded(standby, MODEL), 2 * TIMEOUT_S, every=0.1)
        took = time.monotonic() - began
        # Requests that began before it served wait in the queue of the first host.
        _watch(answers, max(answer.ended - answer.begun for answer in alone), "requests from before end")
        both = _watch(answers, seconds, "two hosts")
    before, after = _p95(alone, idle), _p95(both, idle)
    every = [*alone, *both]
    failed = sum(bool(answer.error) for answer in every)
    fall = 1 - after / before
    rows = [
        [f"hot: {STREAMS} streams at one host: queue time, p95", f"{before:.2f} s", f"{len(alone)} streams"],
        ["hot: a standby that joins serves, too, after", f"{took:.1f} s", ""],
        [f"hot: {STREAMS} streams, two hosts: queue time, p95", f"{after:.2f} s", f"{len(both)} streams"],
        [
            "hot: tokens/s of all streams, one host and two",
            *(f"{_speed(found):.0f}" for found in (alone, both)),
        ],
    ]
    bars = [
        report.bar("hot: p95 queue time falls by", fall, FALL, at_most=False),
        report.bar(f"hot: errors of {len(every)} streams", failed, 0, at_most=True, shape="{:.0f}"),
    ]
    notes = [NOTE, *(f"hot: error: {error}" for error in errors(every))]
    figures = {"idle_s": idle, "before_s": before, "after_s": after, "second_host_s": took, "errors": errors(every)}
    return Part(rows, bars, notes, {**figures, "streams": [len(alone), len(both)]})


class _Answers:
    """The answers so far, added by the callers' threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: list[Answer] = []

    def add(self, answer: Answer) -> None:
        with self._lock:
            self._found.append(answer)

    def since(self, moment: float) -> list[Answer]:
        """Those that began after `moment`."""
        with self._lock:
            return [answer for answer in self._found if answer.begun >= moment]


@contextmanager
def _streams(host: Node) -> Iterator[_Answers]:
    """16 callers, each of whom begins a stream when the last one ended, until the end of the block."""
    answers, stop = _Answers(), Event()

    def call(caller: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            prompt = f"Caller {caller} asks question {number}."
            answers.add(ask(host.port, MODEL, stream=True, tokens=TOKENS, prompt=prompt))

    with ThreadPoolExecutor(STREAMS) as callers:
        calls = [callers.submit(call, caller) for caller in range(STREAMS)]
        try:
            yield answers
        finally:
            stop.set()
    for done in calls:
        done.result()


def _watch(answers: _Answers, seconds: float, what: str) -> list[Answer]:
    """The streams that began and ended in the next `seconds`, or, if there are few, in as long as it takes."""
    begun = time.monotonic()
    found: list[Answer] = []
    while time.monotonic() < begun + seconds or len(found) < 2 * STREAMS:
        time.sleep(0.2)  # the time is what is set
        found = answers.since(begun)
        report.progress(f"hot: {what}: {len(found)} streams")
    return found


def _first(answer: Answer) -> float:
    return answer.first if answer.first is not None else answer.ended - answer.begun


def _p95(answers: list[Answer], idle: float) -> float:
    return quantiles([max(0.0, _first(answer) - idle) for answer in answers], n=20, method="inclusive")[-1]


def _speed(answers: list[Answer]) -> float:
    seconds = max(answer.ended for answer in answers) - min(answer.begun for answer in answers)
    return len(answers) * TOKENS / seconds
