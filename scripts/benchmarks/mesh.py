"""`scripts/bench mesh`: the cost of the mesh between a client and a remote model; joining, idling, losing a host.

All nodes run on this machine and share its cores: compare ratios and differences within a round. Each figure is next to
one without the mesh from the same run. The order of the paths rotates from round to round.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import engine, mesh_events, mesh_streams, report
from .mesh_nodes import Nodes
from .native import BenchError, compiled

PARTS = ("join", "added", "streams", "idle", "kill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--quick", action="store_true", help="short run, less precise")
    parser.add_argument("--rounds", type=int, help="rounds over all ways (default 7; quick 2)")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part (repeatable)")
    parser.add_argument("--model", default=engine.MODEL, help=f"the real model (default {engine.MODEL})")
    parser.add_argument("--no-model", action="store_true", help="without the engine: no tokens/s, joins to a fake")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each reply of the real model (default 128)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 when a part could not be measured or a request failed."""
    rounds = options.rounds or (2 if options.quick else 7)
    parts = [part for part in PARTS if part in (options.only or PARTS)]
    measured: dict[str, Any] = {}
    notes: list[str] = []
    compiled("load")
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch, ExitStack() as stack:
            try:
                measured |= _measure(part, Nodes(stack, Path(scratch)), rounds, options)
            except BenchError as error:
                notes.append(f"{part} was not measured: {error}")
    report.progress("")
    for failed, complaint in (("failed", "complaint"), ("failed_streams", "complaint_streams")):
        if measured.get(failed):
            notes.append(f"{measured[failed]} requests failed; the first: {measured[complaint]}")
    if options.json:
        print(report.as_json("mesh", _bars(measured, parts), rounds=rounds, measured=measured, notes=notes))
    else:
        title = f"mesh: medians of {rounds} rounds, all nodes on this machine"
        report.show(title, ["", "alone", "mesh, lanes", "mesh, QUIC"], _rows(measured), _bars(measured, parts), notes)
    return int(bool(notes))


def _measure(part: str, nodes: Nodes, rounds: int, options: argparse.Namespace) -> dict[str, Any]:
    model = None if options.no_model else options.model
    if part == "join":
        return mesh_events.join(nodes, rounds, model)
    if part == "added":
        return mesh_streams.added(nodes, rounds, quick=options.quick)
    if part == "streams" and model is not None:
        return mesh_streams.real(nodes, rounds, model, options.tokens)
    if part == "idle":
        return mesh_events.idle(nodes, seconds=5.0 if options.quick else 30.0)
    if part == "kill":
        return mesh_events.kill(nodes, rounds)
    return {}


# Caption, key of the three columns, shape of a number.
_SHOWN = [
    ("start to API listening, s", "listening_s", "{:.3f}"),
    ("first word from the host itself, s", "direct_word_s", "{:.3f}"),
    ("start with --join to the first word, a node, s", "join_node_s", "{:.3f}"),
    ("start with --join to the first word, a client, s", "join_client_s", "{:.3f}"),
    ("listening to the first word, a node, s", "joined_node_s", "{:.3f}"),
    ("listening to the first word, a client, s", "joined_client_s", "{:.3f}"),
    ("first event of a stream, ms (mesh: added)", "first_event_ms", "{:.3f}"),
    ("the same, p99", "first_event_p99_ms", "{:.3f}"),
    ("plain answer, ms (mesh: added)", "answer_ms", "{:.3f}"),
    ("events/s, 16 streams flat out", "events_per_s", "{:,.0f}"),
    ("tokens/s of a real model, 1 stream", "tokens_one", "{:.1f}"),
    ("    x direct", "ratio_one", "{:.3f}"),
    ("tokens/s of a real model, 4 streams", "tokens_many", "{:.1f}"),
    ("    x direct", "ratio_many", "{:.3f}"),
    ("idle CPU, %", "idle_cpu_percent", "{:.2f}"),
    ("idle resident memory, MB", "idle_rss_mb", "{:.1f}"),
    ("kill -9 of the host to the last of 16 answers, s", "killed_s", "{:.3f}"),
]


def _rows(measured: dict[str, Any]) -> list[list[str]]:
    rows = []
    for caption, key, shape in _SHOWN:
        values = measured.get(key)
        if values:
            rows.append(
                [caption, *(shape.format(values[c]) if c in values else "-" for c in ("alone", "lanes", "quic"))]
            )
    return rows


def _bars(measured: dict[str, Any], parts: list[str]) -> list[report.Bar]:
    def value(key: str, column: str = "lanes") -> float | None:
        found: float | None = measured.get(key, {}).get(column)
        return found

    join = report.bar("start with --join to the first word, s", value("join_node_s"), 1.0, at_most=True)
    added = report.bar("added time to the first event, median, ms", value("first_event_ms"), 2.0, at_most=True)
    one = report.bar("tokens/s of a remote stream, x direct", value("ratio_one"), 0.97, at_most=False)
    many = report.bar("the same, 4 streams", value("ratio_many"), 0.97, at_most=False)
    survived = measured.get("survived")
    kill = report.bar("answers after kill -9, of 16", survived, 16, at_most=False, shape="{:.0f}")
    bars = {"join": [join], "added": [added], "streams": [one, many], "kill": [kill]}
    return [bar for part in parts for bar in bars.get(part, ())]
