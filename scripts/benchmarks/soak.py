"""`scripts/bench soak`: three daemons under steady requests; their memory and file descriptors must stay flat.

Flat: the median of the last fifth of the samples against the median of the second fifth (the first is warm-up).
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from . import engine, report
from .children import get_json
from .mesh_nodes import Node, Nodes

# A request takes at most this long; only for what is broken.
TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to run (default 30)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples (default 5)")
    parser.add_argument(
        "--pause", type=float, default=0.2, help="seconds between two requests of a caller (default 0.2)"
    )
    parser.add_argument("--model", default=engine.MODEL, help=f"the model to ask (default {engine.MODEL})")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


@dataclass
class Counts:
    """What the callers have seen."""

    answered: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 when a request failed or a node grew by more than a twentieth."""
    samples: dict[str, list[tuple[float, int, int]]] = {}
    counts, done = Counts(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name, ExitStack() as stack:
        nodes = Nodes(stack, Path(name))
        host = nodes.start("host", "--model", options.model)
        host.wait_for_model(options.model, 900)
        invite = nodes.invite(host)
        others = [
            nodes.start("member", "--join", f"@{invite}"),
            nodes.start("client", "--join", f"@{invite}", "--client"),
        ]
        for node in others:
            node.wait_for_model(options.model, 120)
        everyone = [host, *others]
        callers = [
            threading.Thread(target=_call, args=(node, options, counts, done), name=f"caller-{node.name}")
            for node in everyone
        ]
        for caller in callers:
            caller.start()
        try:
            _sample(everyone, options, samples)
        finally:
            done.set()
            for caller in callers:
                caller.join()
    report.progress("")
    return _print(options, samples, counts)


def _call(node: Node, options: argparse.Namespace, counts: Counts, done: threading.Event) -> None:
    """Ask one node, again and again: whole answers, streams, a wrong model now and then, a caller that goes away."""
    number = 0
    while not done.wait(options.pause):
        number += 1
        model = "no-such-model" if number % 10 == 0 else options.model
        body = {
            "model": model,
            "messages": [{"role": "user", "content": f"Count to {number % 7 + 1}."}],
            "max_tokens": 8,
            "temperature": 0,
            "stream": number % 2 == 0,
        }
        with closing(http.client.HTTPConnection("127.0.0.1", node.port, timeout=TIMEOUT_S)) as connection:
            try:
                connection.request(
                    "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
                )
                response = connection.getresponse()
                if number % 13 == 0:
                    continue  # gone before the answer
                response.read()
                get_json(node.console, "/api/status")
                good = response.status == (404 if number % 10 == 0 else 200)
            except (OSError, http.client.HTTPException, ValueError) as error:
                good, response_error = False, repr(error)
            else:
                response_error = f"status {response.status}"
            counts.answered += good
            counts.failed += not good
            if not good and len(counts.errors) < 10:
                counts.errors.append(f"{node.name}: {response_error}")


def _sample(nodes: list[Node], options: argparse.Namespace, samples: dict[str, list[tuple[float, int, int]]]) -> None:
    began = time.monotonic()
    while (at := time.monotonic() - began) < options.minutes * 60:
        for node in nodes:
            facts = (at, node.child.resident_bytes(), node.child.process.num_fds())
            samples.setdefault(node.name, []).append(facts)
        report.progress(f"{at / 60:.1f} of {options.minutes:g} minutes")
        time.sleep(options.every)


def _growth(values: list[int]) -> float:
    """Median of the last fifth against the median of the second fifth."""
    fifth = max(1, len(values) // 5)
    return median(values[-fifth:]) / max(1, median(values[fifth : 2 * fifth] or values))


def _print(options: argparse.Namespace, samples: dict[str, list[tuple[float, int, int]]], counts: Counts) -> int:
    rows, bars = [], []
    measured: dict[str, Any] = {"answered": counts.answered, "failed": counts.failed, "errors": counts.errors}
    for name, taken in samples.items():
        memory, files = [one[1] for one in taken], [one[2] for one in taken]
        grown, more = _growth(memory), _growth(files)
        measured[name] = {"memory_growth": grown, "files_growth": more, "samples": taken}
        fifth = max(1, len(taken) // 5)
        for what, values, unit in (("memory, MB", memory, 1e6), ("file descriptors", files, 1)):
            early, late = median(values[fifth : 2 * fifth] or values), median(values[-fifth:])
            rows.append([f"{name}: {what}", f"{early / unit:.1f}", f"{late / unit:.1f}", f"{max(values) / unit:.1f}"])
        bars.append(report.bar(f"{name}: memory, late / early", grown, 1.05, at_most=True))
        bars.append(report.bar(f"{name}: file descriptors, late / early", more, 1.05, at_most=True))
    rows.append(["requests answered as expected", str(counts.answered), "", ""])
    rows.append(["requests that failed", str(counts.failed), "", ""])
    if options.json:
        print(report.as_json("soak", bars, measured=measured, notes=counts.errors))
    else:
        report.show("soak", ["", "early", "late", "most"], rows, bars, counts.errors)
    return int(counts.failed > 0 or any(measured[n]["memory_growth"] > 1.05 for n in samples))
