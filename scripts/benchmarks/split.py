"""`scripts/bench split`: a model split over daemons, through their own tunnels; against stock RPC and the raw link.

Every engine has one thread; all variants of a part run at the same time and get requests in turn, so that other load of
the machine affects all alike. Latency comes from the lab (`tests/netlab`): hosts in network namespaces with a delayed
link; without root or Linux, those parts are skipped with a note.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.split.planner import SplitNeed, need_of
from meshllm.models.gguf.header import read_header
from tests.netlab.lab import Lab, missing

from . import report, split_engine, split_losses
from .native import BenchError
from .speculation_texts import repeating
from .split_daemons import Daemons, Here, Node, Place, round_trip_ms
from .split_nodes import Host, Scene
from .split_stock import stock_of

PARTS = ("near", "far", "chain", "load", "kill")
FAR_MS, CHAIN_MS = 10, 10  # one way
# So much that a third of a small model takes what `--max-vram` wants at least.
CHAIN_CONTEXT = 8192
PLAIN = "--no-speculation"


@dataclass
class Way:
    """One way to serve the model, and what was measured of it, round by round."""

    name: str
    ask: Callable[[str, int], dict[str, Any]]
    decode_ms: list[float] = field(default_factory=list)
    prefill_ms: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--quick", action="store_true", help="short run, less precise")
    parser.add_argument("--rounds", type=int, help="rounds over all ways (default 7; quick 2)")
    parser.add_argument("--tokens", type=int, help="tokens per reply (default 48; quick 24)")
    parser.add_argument("--kills", type=int, help="how often a worker is killed (default 50; quick 4)")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part (repeatable)")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: SmolLM2-135M-Instruct)")
    parser.add_argument(
        "--stock", type=Path, help="folder of programs built without patches (default: one in the cache, if any)"
    )
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 when a part could not be measured."""
    found = Found(options)
    for part in [part for part in PARTS if part in (options.only or PARTS)]:
        reason = missing() if part in ("far", "chain") else None
        if reason is not None:
            found.notes.append(f"{part} is not measured: no network lab: {reason}")
            continue
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-")))
            try:
                getattr(found, part)(stack, Daemons(stack, scratch, found.model))
            except BenchError as error:
                found.notes.append(f"{part} was not measured: {error}")
                found.failed = True
    report.progress("")
    if options.json:
        print(report.as_json("split", found.bars, model=found.model.name, measured=found.measured(), notes=found.notes))
    else:
        title = f"split: {found.model.name}, {found.tokens} tokens, medians of {found.rounds} rounds"
        columns = ["", "ms/token", "prefill, ms", "forecast, ms/token", "B to the host per token", "via"]
        report.show(title, columns, [_row(way) for way in found.ways], found.bars, found.notes)
    return int(found.failed)


class Found:
    """What has been measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        quick = options.quick
        self.model: Path = options.model or split_engine.default_model()
        self.rounds: int = options.rounds or (2 if quick else 7)
        self.tokens: int = options.tokens or (24 if quick else 48)
        self.kills: int = options.kills or (4 if quick else 50)
        self.stock: Path | None = options.stock or split_engine.stock_programs()
        self.ways: list[Way] = []
        self.bars: list[report.Bar] = []
        self.notes: list[str] = []
        self.failed = False
        self._more: dict[str, Any] = {}
        self._need = need_of(read_header(self.model).shape, ContextSize(CHAIN_CONTEXT, 1))

    # -- the parts

    def near(self, stack: ExitStack, daemons: Daemons) -> None:
        """Two nodes on this machine, against the stock engine's own RPC over bare TCP, its layers placed alike."""
        host, _ = _pair(daemons, (Here(), Here()), PLAIN)
        ours, ways = self._way("2 nodes", host), []
        if self.stock is None:
            self.notes.append("no build without patches to compare with: --stock FOLDER names one")
        else:
            theirs = stock_of(Scene(stack, self.stock, ports=True), host)
            ways.append(Way("stock RPC over TCP", lambda prompt, tokens: _direct(theirs, prompt, tokens)))
        split = host.wait_until_split()
        sent = split["shares"][1]["sent"] / self.model.stat().st_size
        self._measure("near", [ours, *ways])
        self._note_split(ours, host)
        for way in ways:
            pairs = list(zip(way.decode_ms, ours.decode_ms, strict=True))
            prefills = list(zip(way.prefill_ms, ours.prefill_ms, strict=True))
            self._bar("2 nodes: decode, x stock", _ratio(pairs), 0.97)
            self._bar("2 nodes: prefill, x stock", _ratio(prefills), 0.95)
        self._bar("sent to the worker at load, x the file", sent, 0.01, at_most=True)
        state = 4 * split_engine.hidden_size(self.model)
        self._bar("bytes to the host per token", ours.facts["back"], state + 1000, at_most=True, shape="{:.0f}")

    def far(self, stack: ExitStack, daemons: Daemons) -> None:
        """Two nodes with a delay against two without; and the former with speculative decoding."""
        lab = stack.enter_context(Lab())
        hosts = [lab.host(name) for name in ("h", "w", "g", "v")]
        lab.link_all(delay=FAR_MS / 1000)
        near, _ = _pair(daemons, (Here(), Here()), PLAIN)
        far, _ = _pair(daemons, (hosts[0], hosts[1]), PLAIN)
        ahead, _ = _pair(daemons, (hosts[2], hosts[3]))
        trip = round_trip_ms(hosts[0], hosts[1], hosts[1].address)
        self.notes.append(f"2 nodes, 20 ms: a byte takes {trip:.1f} ms over the wire and back")
        self._more["far_round_trip_ms"] = trip
        ways = [self._way("2 nodes, at once", near), self._way("2 nodes, 20 ms", far)]
        self._measure("far", ways)
        self._note_split(ways[1], far)
        self._bar("2 nodes, 20 ms: decode, x 1 / (compute + 20 ms)", _reached(*ways, 2 * FAR_MS), 0.95)
        text = next(one for one in repeating() if one.name == "code")
        prompt = f"{text.asked}\n\n{text.begun}"
        pair = [Way("code, 20 ms", far.complete), Way("code, 20 ms, speculative", ahead.complete)]
        self._measure("guesses", pair, prompt=prompt, tokens=4 * self.tokens)
        pairs = list(zip(pair[0].decode_ms, pair[1].decode_ms, strict=True))
        self._bar("20 ms: repetitive code with n-grams, x without", _ratio(pairs), 1.5)

    def chain(self, stack: ExitStack, daemons: Daemons) -> None:
        """Three nodes with a delay between each two, against the same at once."""
        lab = stack.enter_context(Lab())
        hosts = [lab.host(name) for name in ("h", "v", "w")]
        lab.link_all(delay=CHAIN_MS / 1000)
        near, far = (_three(daemons, places, self._need) for places in ([Here()] * 3, hosts))
        ways = [self._way("3 nodes, at once", near), self._way("3 nodes, 10 ms each", far)]
        self._measure("chain", ways)
        self._note_split(ways[1], far)
        self._bar("3 nodes, 10 ms: decode, x 1 / (compute + 30 ms)", _reached(*ways, 3 * CHAIN_MS), 0.9)

    def load(self, stack: ExitStack, daemons: Daemons) -> None:
        """From the start of the engine until it serves: alone, in two parts, and in two parts with a delay."""
        lab_hosts: list[Place] = []
        if (reason := missing()) is None:
            lab = stack.enter_context(Lab())
            lab_hosts = [lab.host("h"), lab.host("w")]
            lab.link_all(delay=FAR_MS / 1000)
        else:
            self.notes.append(f"loading over 20 ms is not measured: {reason}")
        workers = {"2 nodes": daemons.worker(Here(), "worker")}
        if lab_hosts:
            workers["2 nodes, 20 ms"] = daemons.worker(lab_hosts[1], "far-worker")
        took: dict[str, list[float]] = {"alone": [], **{name: [] for name in workers}}
        for number in range(self.rounds):
            for name in took if number % 2 else reversed(took):
                report.progress(f"load, round {number + 1} of {self.rounds}: {name}")
                with ExitStack() as once:
                    if name == "alone":
                        node = daemons.alone(Here(), "alone", PLAIN, stack=once)
                    else:
                        place = lab_hosts[0] if name != "2 nodes" else Here()
                        node = daemons.host(place, "host", PLAIN, join=workers[name], stack=once)
                    took[name].append(node.load_seconds())
        self._more["load_s"] = took
        for name in list(took)[1:]:
            pairs = list(zip(took[name], took["alone"], strict=True))
            self._bar(f"{name}: load, x alone", _ratio(pairs), 1.2, at_most=True)
        shown = ", ".join(f"{name} {median(values):.2f} s" for name, values in took.items())
        self.notes.append(f"load: {shown}")

    def kill(self, stack: ExitStack, daemons: Daemons) -> None:
        """A worker, or its rpc-server alone, is killed in the middle of a stream, again and again."""
        told = split_losses.kill(daemons, self.kills)
        self._more["kill"] = told.as_dict()
        for name, count in (("hangs", told.hangs), ("orphans", told.orphans), ("cut off without a word", told.cut)):
            self._bar(f"{self.kills} workers killed: {name}", count, 0, at_most=True, shape="{:.0f}")
        self._bar("the same: serving again", told.recovered, self.kills, shape="{:.0f}")
        self.notes.append(f"killed in a stream: {told.words()}")

    # -- measuring

    def _way(self, name: str, host: Node) -> Way:
        way = Way(name, host.complete)
        split = host.wait_until_split()
        way.facts = {"forecast_ms": split["forecast"] * 1000, "layers": [s["layers"] for s in split["shares"]]}
        return way

    def _measure(self, part: str, ways: Sequence[Way], *, prompt: str = "", tokens: int = 0) -> None:
        """Every way in turn: a decode, and, without a prompt of its own, a prefill."""
        for number in range(-1, self.rounds):  # round -1 warms up: graphs are sent
            for way in ways if number % 2 else reversed(ways):
                report.progress(f"{part}, round {number + 1} of {self.rounds}: {way.name}")
                decoded = way.ask(prompt or split_engine.DECODE_PROMPT, tokens or self.tokens)
                filled = None if prompt else way.ask(split_engine.PREFILL_PROMPT, 1)
                if number >= 0:
                    way.decode_ms.append(decoded["predicted_per_token_ms"])
                    if filled is not None:
                        way.prefill_ms.append(filled["prompt_ms"])
        self.ways += ways

    def _note_split(self, way: Way, host: Node) -> None:
        """Bytes to the host for a token, what the status says of forecast and result, and how it travels."""
        before = host.wait_until_split()
        host.complete(split_engine.DECODE_PROMPT, self.tokens)
        after = host.wait_until_split()
        came = [a["received"] - b["received"] for a, b in zip(after["shares"], before["shares"], strict=True)]
        way.facts |= {
            "back": sum(came) / self.tokens,
            "via": ", ".join(sorted({str(share["transport"]) for share in after["shares"][1:]})),
            "rtt_ms": [None if share["rtt"] is None else share["rtt"] * 1000 for share in after["shares"][1:]],
            "measured_by_status_ms": None if after["measured"] is None else after["measured"] * 1000,
        }

    def _bar(
        self, name: str, value: float | None, wanted: float, *, at_most: bool = False, shape: str = "{:.3g}"
    ) -> None:
        self.bars.append(report.bar(name, value, wanted, at_most=at_most, shape=shape))

    def measured(self) -> dict[str, Any]:
        """All of it, for a program."""
        ways = {way.name: {"decode_ms": way.decode_ms, "prefill_ms": way.prefill_ms, **way.facts} for way in self.ways}
        return {"ways": ways, **self._more}


def _pair(daemons: Daemons, places: Sequence[Place], *options: str) -> tuple[Node, Node]:
    """A host and a worker, at these two places; the host serves."""
    worker = daemons.worker(places[1], "worker")
    host = daemons.host(places[0], "host", *options, join=worker)
    host.wait_until_split()
    return host, worker


def _three(daemons: Daemons, places: Sequence[Place], need: SplitNeed) -> Node:
    """The host of three nodes of which no two hold the model."""
    third = sum(need.layers) // 3 + 2 * max(need.layers)
    offered, kept = need.buffers + third, need.buffers + need.ends + third
    worker = daemons.worker(places[1], "worker-1", "--max-vram", f"{offered / 1e9:.4f}")
    daemons.worker(places[2], "worker-2", "--max-vram", f"{offered / 1e9:.4f}", join=worker)
    words = (PLAIN, "--ctx-size", str(CHAIN_CONTEXT), "--max-vram", f"{kept / 1e9:.4f}")
    host = daemons.host(places[0], "host", *words, join=worker)
    split = host.wait_until_split()
    if len(split["shares"]) != 3:
        raise BenchError(f"the model was to be on three nodes, and is on {len(split['shares'])}")
    return host


def _direct(host: Host, prompt: str, tokens: int) -> dict[str, Any]:
    return dict(host.complete(prompt, tokens)["timings"])


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return median(first / second for first, second in pairs)


def _reached(near: Way, far: Way, wire_ms: float) -> float:
    """Speed over the wire, as a part of what the same programs without delay and the wire alone would allow."""
    return median((quick + wire_ms) / slow for quick, slow in zip(near.decode_ms, far.decode_ms, strict=True))


def _row(way: Way) -> list[str]:
    facts = way.facts
    return [
        way.name,
        f"{median(way.decode_ms):.1f}",
        f"{median(way.prefill_ms):.0f}" if way.prefill_ms else "",
        f"{facts['forecast_ms']:.1f}" if "forecast_ms" in facts else "",
        f"{facts['back']:,.0f}" if "back" in facts else "",
        facts.get("via", ""),
    ]
