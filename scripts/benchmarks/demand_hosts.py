"""A model without a host: its only host is killed, or no caller has asked for it yet (`scripts/bench demand`)."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread

import psutil

from . import report
from .demand_calls import Answer, ask, errors, paced
from .demand_nodes import (
    LOOK_S,
    MODEL,
    TIMEOUT_S,
    Part,
    engines,
    environment,
    folder_with_model,
    load_seconds,
    wait_for_peers,
    wait_until_loaded,
)
from .mesh_nodes import Node, Nodes

LATE_S = 5.0
WORD_LATE_S = 1.0
SILENCE_S = 6.0
REQUESTS = 50
# Between the first and the last request after the kill.
SPAN_S = 2.0
# For so long an engine is halted while it loads, as if the model were large.
HALT_S = 15.0


def killed(nodes: Nodes, *, quick: bool) -> Part:
    """`kill -9` of the only host: until a standby serves, and what callers get meanwhile."""
    folder = folder_with_model(nodes.scratch)
    rounds = 1 if quick else 3
    report.progress("killed: load time of the standby")
    load = load_seconds(nodes, folder, MODEL, rounds)
    served: list[float] = []
    answers: list[Answer] = []
    for number in range(rounds):
        report.progress(f"killed: host {number + 1} of {rounds}")
        with ExitStack() as stack:
            seconds, heard = _kill(nodes, stack, folder)
        served.append(seconds)
        answers += heard
    worst, failed = max(served) - load, sum(bool(answer.error) for answer in answers)
    silence = max(answer.silence for answer in answers)
    last = max(answer.ended - answer.begun for answer in answers)
    rows = [
        ["killed: load time of the model on the standby", f"{load:.2f} s", ""],
        ["killed: a standby serves after", f"{median(served):.2f} s", f"worst {max(served):.2f} s"],
        [f"killed: requests within {SPAN_S:.0f} s of it", f"{len(answers)}", f"{failed} errors"],
        ["killed: longest wait for an answer", f"{last:.2f} s", f"longest silence {silence:.1f} s"],
    ]
    bars = [
        report.bar("killed: a standby serves, s beyond its load time (worst)", worst, LATE_S, at_most=True),
        report.bar(f"killed: errors of {len(answers)} requests", failed, 0, at_most=True, shape="{:.0f}"),
    ]
    figures = {"load_s": load, "served_s": served, "requests": len(answers), "errors": errors(answers)}
    notes = [f"killed: error: {error}" for error in errors(answers)]
    return Part(rows, bars, notes, {**figures, "silence_s": silence, "answer_s": last})


def _kill(nodes: Nodes, stack: ExitStack, folder: Path) -> tuple[float, list[Answer]]:
    """Seconds from the kill until the standby served, and the answers to the requests made after it."""
    host = nodes.start("host", "--model", MODEL, stack=stack, env=environment(folder))
    wait_until_loaded(host, MODEL)
    invite = nodes.invite(host)
    standby = nodes.start("standby", "--join", f"@{invite}", stack=stack, env=environment(folder))
    third = nodes.start("third", "--join", f"@{invite}", stack=stack)
    client = nodes.start("client", "--client", "--join", f"@{invite}", stack=stack)
    callers = (standby, third, client)
    for node in callers:
        node.wait_for_model(MODEL)
    for node in (standby, third):
        wait_for_peers(node, 2)
    third.child.wait_for("the standby's model", lambda: _has_on_disk(third, "standby"), TIMEOUT_S)
    for node in callers:
        first = ask(node.port, MODEL, stream=True)
        assert not first.error, first.error
    asks = [
        partial(ask, callers[number % 3].port, MODEL, stream=number // 3 % 2 == 0, prompt=f"Question {number}.")
        for number in range(REQUESTS)
    ]
    moment: list[float] = []
    watching = Thread(target=lambda: moment.append(wait_until_loaded(standby, MODEL)))
    begun = time.monotonic()
    host.kill()
    watching.start()
    made = list(paced(asks, SPAN_S))
    watching.join()
    return moment[0] - begun, [future.result() for future in made]


def _has_on_disk(node: Node, peer: str) -> bool:
    return any(one["name"] == peer and MODEL in one["on_disk"] for one in node.peers())


def first_request(nodes: Nodes, *, quick: bool) -> Part:
    """The first request for a model that is only on a standby's disk, by way of another node and of a client."""
    folder = folder_with_model(nodes.scratch)
    rounds = 1 if quick else 3
    report.progress("first request: load time of the standby")
    load = load_seconds(nodes, folder, MODEL, rounds)
    answers: dict[str, list[Answer]] = {"node": [], "client": [], "slow": []}
    listed: list[bool] = []
    for number in range(rounds):
        for way, found in answers.items():
            if way == "slow" and number:
                continue
            report.progress(f"first request: round {number + 1} of {rounds}, {way}")
            with ExitStack() as stack:
                seen, answer = _first(nodes, stack, folder, way)
            listed.append(seen)
            found.append(answer)
    every = [answer for found in answers.values() for answer in found]
    quickly = [answer.first for way in ("node", "client") for answer in answers[way] if answer.first is not None]
    late = max(quickly) - load if len(quickly) == len(answers["node"] + answers["client"]) else None
    silence = max(answer.silence for answer in every)
    rows = [
        ["first request: load time of the model on the standby", f"{load:.2f} s", ""],
        ["first request: listed by the other node before it", f"{sum(listed)} of {len(listed)}", ""],
    ]
    for way, found in answers.items():
        words = [answer.first for answer in found if answer.first is not None]
        text = f"{median(words):.2f} s" if words else "none"
        halted = f", engine halted for {HALT_S:.0f} s" if way == "slow" else ""
        worst = f"longest silence {max(answer.silence for answer in found):.1f} s"
        rows.append([f"first request: first token, through a {'node' if way == 'slow' else way}{halted}", text, worst])
    failed = sum(bool(answer.error) for answer in every)
    bars = [
        report.bar("first request: first token, s beyond the load time (worst)", late, WORD_LATE_S, at_most=True),
        report.bar("first request: longest time without token or comment, s", silence, SILENCE_S, at_most=True),
        report.bar(f"first request: errors of {len(every)}", failed, 0, at_most=True, shape="{:.0f}"),
        report.bar("first request: not listed before", listed.count(False), 0, at_most=True, shape="{:.0f}"),
    ]
    figures = {way: [answer.first for answer in found] for way, found in answers.items()}
    notes = [f"first request: error: {error}" for error in errors(every)]
    return Part(rows, bars, notes, {"load_s": load, "first_s": figures, "silence_s": silence, "errors": errors(every)})


def _first(nodes: Nodes, stack: ExitStack, folder: Path, way: str) -> tuple[bool, Answer]:
    """Whether the entry lists the model, and its answer to the first request for it."""
    other = nodes.start("other", stack=stack)
    other.child.wait_for("mesh", lambda: other.status()["mesh"], TIMEOUT_S)
    invite = nodes.invite(other)
    standby = nodes.start("standby", "--join", f"@{invite}", stack=stack, env=environment(folder))
    entry = other
    if way == "client":
        entry = nodes.start("client", "--client", "--join", f"@{invite}", stack=stack)
    other.child.wait_for("the standby's model", lambda: _has_on_disk(other, "standby"), TIMEOUT_S)
    entry.child.wait_for("the standby's model", lambda: _has_on_disk(entry, "standby"), TIMEOUT_S)
    listed = entry.serves(MODEL)
    if way != "slow":
        return listed, ask(entry.port, MODEL, stream=True)
    with _halted(standby, HALT_S):
        return listed, ask(entry.port, MODEL, stream=True)


class _halted:
    """Halts the first engine process of `node` for `seconds` as soon as it is there."""

    def __init__(self, node: Node, seconds: float) -> None:
        self._node, self._seconds, self._over = node, seconds, Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not (found := engines(self._node)):
            if self._over.wait(LOOK_S / 4):
                return
        with suppress(psutil.Error):
            found[0].suspend()
            try:
                self._over.wait(self._seconds)
            finally:
                found[0].resume()
