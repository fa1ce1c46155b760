"""Measurements of mesh events: a node joins, is idle, or loses the host of its requests."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from . import engine, report, targets
from .children import Child, free_port, get_json, listening, post_json
from .mesh_nodes import NO_LANES, TIMEOUT_S, Node, Nodes, first_word
from .native import BenchError

WAITING = 16
# Requests go to either of two hosts; when so many have not brought one of them enough, they do not spread.
MOST_REQUESTS = 8 * WAITING


def join(nodes: Nodes, rounds: int, model: str | None) -> dict[str, Any]:
    """From the start of a joiner, with a new home each time, to the first word of the host's model at its API.

    A request is made as soon as the API listens, and waits there. `model` None: a fake stands behind the host.
    """
    if model is None:
        upstream = targets.start_upstream(nodes.stack, nodes.scratch)
        host = nodes.start("host", "--backend", f"http://127.0.0.1:{upstream.port}")
        host.wait_for_model("fake")
    else:
        report.progress(f"starting {model} ...")
        host = nodes.start("host", "--model", model)
        host.child.wait_for("answer", lambda: engine.answers(host.port, model), engine.TIMEOUT_S, every=0.05)
    name = model or "fake"
    invite = nodes.invite(host)
    kinds = {"node": (), "client": ("--client",)}
    taken: dict[str, list[float]] = {key: [] for key in ("direct", "listening", *kinds, *(f"{k} after" for k in kinds))}
    for number in range(-1, rounds):
        report.progress(f"joining, round {number + 1} of {rounds}")
        found = {"direct": _direct(host, name), "listening": _listening(nodes)}
        for kind in kinds if number % 2 else reversed(kinds):
            found[kind], found[f"{kind} after"] = _join(nodes, kind, [*kinds[kind], "--join", f"@{invite}"], name)
        if number >= 0:
            for key, value in found.items():
                taken[key].append(value)
    return {
        "rounds_join": taken,
        "direct_word_s": {"alone": median(taken["direct"])},
        "listening_s": {"alone": median(taken["listening"])},
        **{f"join_{kind}_s": {"lanes": median(taken[kind])} for kind in kinds},
        **{f"joined_{kind}_s": {"lanes": median(taken[f"{kind} after"])} for kind in kinds},
    }


def _direct(host: Node, model: str) -> float:
    began = time.monotonic()
    return first_word(host.port, model, began + TIMEOUT_S) - began


def _listening(nodes: Nodes) -> float:
    """Start to listening of a node that joins nothing."""
    with ExitStack() as stack:
        node = nodes.start("alone", stack=stack)
        node.child.wait_for("listening API port", lambda: listening(node.port), every=0.002)
        return time.monotonic() - node.child.started


def _join(nodes: Nodes, kind: str, options: list[str], model: str) -> tuple[float, float]:
    """Seconds to the first word, from the start and from when the API listened."""
    with ExitStack() as stack:
        node = nodes.start(kind, *options, stack=stack)
        node.child.wait_for("listening API port", lambda: listening(node.port), every=0.002)
        heard = time.monotonic()
        word = first_word(node.port, model, heard + TIMEOUT_S)
        return word - node.child.started, word - heard


def idle(nodes: Nodes, seconds: float) -> dict[str, Any]:
    """A node that has joined one other, and one that is alone, watched at the same time."""
    upstream = targets.start_upstream(nodes.stack, nodes.scratch)
    host = nodes.start("host", "--backend", f"http://127.0.0.1:{upstream.port}")
    host.wait_for_model("fake")
    joined = nodes.start("joined", "--join", f"@{nodes.invite(host)}")
    joined.wait_for_hosts("fake", 1)
    alone = nodes.start("alone")
    alone.child.wait_for("listening API port", lambda: listening(alone.port))
    report.progress(f"watching idle nodes for {seconds:.0f} s ...")
    time.sleep(3)  # what a start still does in the background is not idleness
    watched = {"alone": alone.child, "lanes": joined.child}
    before = {name: child.cpu_seconds() for name, child in watched.items()}
    began = time.monotonic()
    time.sleep(seconds)
    taken = time.monotonic() - began
    cpu = {name: (child.cpu_seconds() - before[name]) / taken * 100 for name, child in watched.items()}
    return {
        "idle_cpu_percent": cpu,
        "idle_rss_mb": {name: child.resident_bytes() / 1e6 for name, child in watched.items()},
    }


def kill(nodes: Nodes, rounds: int) -> dict[str, Any]:
    """Two hosts hold requests back; the one that has 16 is killed, the other lets go: until the last answer."""
    taken: dict[str, list[float]] = {"lanes": [], "quic": []}
    answered: list[int] = []
    for number in range(rounds):
        for way in taken if number % 2 else reversed(taken):
            report.progress(f"killing a host, round {number + 1} of {rounds}: {way}")
            with ExitStack() as stack:
                seconds, answers = _kill(nodes, stack, NO_LANES if way == "quic" else {})
            answered.append(answers)
            taken[way].append(seconds)
    figures = {way: median(values) for way, values in taken.items()}
    return {"killed_s": figures, "rounds_killed": taken, "survived": min(answered)}


def _holding(stack: ExitStack, scratch: Path) -> int:
    """The port of a model server that answers when it is told to."""
    port = free_port()
    program = Path(__file__).with_name("holding.py")
    child = stack.enter_context(Child("holding", [sys.executable, str(program), str(port)], scratch))
    child.wait_for("answer", lambda: get_json(port, "/held"))
    return port


def _kill(nodes: Nodes, stack: ExitStack, env: dict[str, str]) -> tuple[float, int]:
    """Seconds from the kill to the last answer, and how many of 16 were answers."""
    doomed_model, other_model = (_holding(stack, nodes.scratch) for _ in range(2))
    doomed = nodes.start("doomed", "--backend", f"http://127.0.0.1:{doomed_model}", stack=stack)
    doomed.wait_for_model("fake")
    invite = nodes.invite(doomed)
    other = nodes.start("other", "--backend", f"http://127.0.0.1:{other_model}", "--join", f"@{invite}", stack=stack)
    joiner = nodes.start("joiner", "--join", f"@{invite}", stack=stack, env=env)
    other.wait_for_model("fake")
    joiner.wait_for_hosts("fake", 2)
    with ThreadPoolExecutor(MOST_REQUESTS) as callers:
        asked = _fill(callers, joiner, doomed_model, other_model)
        post_json(other_model, "/release", {}, 10)
        _until(lambda: sum(not each.done() for each in asked) == WAITING, "the other host's answers")
        waiting = [each for each in asked if not each.done()]
        began = time.monotonic()
        doomed.kill()
        results = [each.result() for each in waiting]
    return max(at for at, _ in results) - began, sum(good for _, good in results)


def _fill(callers: ThreadPoolExecutor, joiner: Node, doomed: int, other: int) -> list[Future[tuple[float, bool]]]:
    """Requests to the joiner, one after the other, until the first server holds as many as are to wait there."""
    asked: list[Future[tuple[float, bool]]] = []
    while get_json(doomed, "/held")["held"] < WAITING:
        if len(asked) == MOST_REQUESTS:
            post_json(doomed, "/release", {}, 10)
            post_json(other, "/release", {}, 10)
            raise BenchError(f"{MOST_REQUESTS} requests did not bring {WAITING} to each of two hosts")
        asked.append(callers.submit(_ask, joiner.port, len(asked)))
        _until(
            lambda: sum(get_json(port, "/held")["held"] for port in (doomed, other)) >= len(asked), "the request there"
        )
    return asked


def _ask(port: int, number: int) -> tuple[float, bool]:
    """When a request ended, and whether with an answer. Each asks something else, as different callers do."""
    body = {"model": "fake", "messages": [{"role": "user", "content": f"Question {number}"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            good = "choices" in json.load(reply)
    except (OSError, ValueError):
        good = False
    return time.monotonic(), good


def _until(fact: Any, what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not fact():
        if time.monotonic() > deadline:
            raise BenchError(f"waited in vain for {what}")
        time.sleep(0.002)
