"""`scripts/bench split-engine`: the engine of a split without daemons: patched against stock RPC, with a delay.

Every engine has one thread, so that two cores can stand for several machines. All variants run at the same time and get
requests in turn, so that other load of the machine affects all alike.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from meshllm import paths
from meshllm.engine.build import builder

from . import engine, report
from .native import BenchError
from .relay import Relay
from .split_nodes import Host, Scene

DECODE_PROMPT = "Explain in plain words how a bicycle stays upright."
PREFILL_PROMPT = "The quick brown fox jumps over the lazy dog. " * 40
KEPT_OUTPUT = r"^(output|output_norm|token_embd)\.=CPU"
"""Has the stock engine keep the output layer on the host, as ours does by itself: the faster way to use it."""


@dataclass
class Way:
    """One way to serve the model, and what was measured of it."""

    name: str
    host: Host
    wires: list[Relay]
    load_bytes: int
    decode_ms: list[float] = field(default_factory=list)
    prefill_ms: list[float] = field(default_factory=list)
    back_bytes: float = 0.0

    @property
    def token_ms(self) -> float:
        return median(self.decode_ms)

    @property
    def prompt_ms(self) -> float:
        return median(self.prefill_ms)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--model", type=Path, help=f"a GGUF file (default: {engine.MODEL})")
    parser.add_argument("--engine", type=Path, help="folder of our programs (default: the build of this checkout)")
    parser.add_argument(
        "--stock", type=Path, help="folder of programs built without patches (default: one in the cache, if any)"
    )
    parser.add_argument("--tokens", type=int, default=48, help="tokens per reply (default 48)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all ways (default 5)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or raises BenchError."""
    ours, stock = options.engine or built_programs(), options.stock or stock_programs()
    model, kept = options.model or default_model(), ("--override-tensor", KEPT_OUTPUT)
    with ExitStack() as stack:
        ways = {"solo": _solo(stack, ours, model)}
        for name, delays in (("2 nodes, at once", [0.0]), ("2 nodes, 20 ms", [0.01]), ("3 nodes, at once", [0.0] * 2),
                             ("3 nodes, 10 ms each", [0.01] * 2)):  # fmt: skip
            report.progress(f"starting {name}")
            ways[f"ours, {name}"] = _ours(stack, ours, model, f"ours, {name}", delays)
            if stock:
                ways[f"stock, {name}"] = _stock_way(stack, stock, model, f"stock, {name}", delays, kept)
                if name == "2 nodes, 20 ms":
                    ways["as it comes"] = _stock_way(stack, stock, model, f"stock as it comes, {name}", delays, ())
        for number in range(options.rounds):
            order = list(ways.values())
            for way in order if number % 2 else reversed(order):
                report.progress(f"round {number + 1} of {options.rounds}: {way.name}")
                _measure(way, options.tokens)
    report.progress("")
    bars = _bars(ways, model)
    if options.json:
        measured = {
            name: {"decode_ms": way.decode_ms, "prefill_ms": way.prefill_ms, "load_s": way.host.load_seconds,
                   "load_bytes": way.load_bytes, "back_bytes_per_token": way.back_bytes}
            for name, way in ways.items()
        }  # fmt: skip
        print(report.as_json("split-engine", bars, model=model.name, measured=measured))
    else:
        title = f"split-engine: {model.name}, {options.tokens} tokens, medians of {options.rounds} rounds"
        columns = ["", "ms/token", "prefill, ms", "load, s", "MB sent at load", "B back per token"]
        notes = [] if stock else ["no build without patches: --stock FOLDER names one"]
        report.show(title, columns, [_row(way) for way in ways.values()], bars, notes)
    return 0


# -- the ways


def _solo(stack: ExitStack, programs: Path, model: Path) -> Way:
    return Way("solo", Scene(stack, programs).host(model), [], 0)


def _ours(stack: ExitStack, programs: Path, model: Path, name: str, delays: list[float]) -> Way:
    """Workers with copies of the file (here the file itself) that push down the chain, and their host."""
    scene = Scene(stack, programs, ports=True)
    files = scene.list_of(model)
    pushes = [scene.endpoint() for _ in delays]
    reached, _ = _over_wires(stack, pushes, delays)
    peers = {f"worker-{number}": endpoint for number, endpoint in enumerate(reached)}
    workers = [scene.worker(files=files, peers=peers, push=push) for push in pushes]
    endpoints, wires = _over_wires(stack, [worker.endpoint for worker in workers], delays)
    named = dict(zip(peers, endpoints, strict=True))
    host = scene.host(model, endpoints, *_shares(len(delays)), files=files, peers=named)
    return Way(name, host, wires, sum(wire.sent for wire in wires))


def _stock_way(
    stack: ExitStack, programs: Path, model: Path, name: str, delays: list[float], more: tuple[str, ...]
) -> Way:
    scene = Scene(stack, programs, ports=True)
    workers = [scene.worker() for _ in delays]
    endpoints, wires = _over_wires(stack, [worker.endpoint for worker in workers], delays)
    host = scene.host(model, endpoints, *_shares(len(delays)), *more)
    return Way(name, host, wires, sum(wire.sent for wire in wires))


def _over_wires(stack: ExitStack, endpoints: list[str], delays: list[float]) -> tuple[list[str], list[Relay]]:
    """How the endpoints are reached over wires with these delays, and the wires: none where there is no delay."""
    if not any(delays):
        return endpoints, []
    wires = [stack.enter_context(Relay(each, delay)) for each, delay in zip(endpoints, delays, strict=True)]
    return [wire.endpoint for wire in wires], wires


def _shares(workers: int) -> tuple[str, ...]:
    """The same to each worker, as near as may be, whichever build it is."""
    return () if workers == 1 else ("--tensor-split", ",".join(["1"] * workers))


# -- measuring


def _measure(way: Way, tokens: int) -> None:
    """One decode and one prefill. The first reply of a host has its graphs sent, and is not counted."""
    if not way.decode_ms:
        way.host.complete(DECODE_PROMPT, tokens)
    before = sum(wire.received for wire in way.wires)
    decoded = way.host.complete(DECODE_PROMPT, tokens)["timings"]
    way.back_bytes = (sum(wire.received for wire in way.wires) - before) / tokens
    way.decode_ms.append(decoded["predicted_per_token_ms"])
    way.prefill_ms.append(way.host.complete(PREFILL_PROMPT, 1)["timings"]["prompt_ms"])


def _row(way: Way) -> list[str]:
    return [
        way.name, f"{way.token_ms:.1f}", f"{way.prompt_ms:.0f}", f"{way.host.load_seconds:.2f}",
        f"{way.load_bytes / 1e6:.1f}" if way.wires else "", f"{way.back_bytes:,.0f}" if way.wires else "",
    ]  # fmt: skip


def _bars(ways: dict[str, Way], model: Path) -> list[report.Bar]:
    two, far = ways["ours, 2 nodes, at once"], ways["ours, 2 nodes, 20 ms"]
    three, chain = ways["ours, 3 nodes, at once"], ways["ours, 3 nodes, 10 ms each"]
    stock = ways.get("stock, 2 nodes, at once")
    pairs = list(zip(stock.decode_ms, two.decode_ms, strict=True)) if stock else []
    prefills = list(zip(stock.prefill_ms, two.prefill_ms, strict=True)) if stock else []
    state = 4 * hidden_size(model)
    return [
        report.bar("2 nodes: decode, x stock", _ratio(pairs), 0.97, at_most=False),
        report.bar("2 nodes: prefill, x stock", _ratio(prefills), 0.95, at_most=False),
        report.bar("2 nodes, 20 ms: decode, x 1 / (compute + 20 ms)", _reached(two, far, 20), 0.95, at_most=False),
        report.bar("3 nodes, 10 ms: decode, x 1 / (compute + 30 ms)", _reached(three, chain, 30), 0.9, at_most=False),
        report.bar(
            "load over 20 ms, x solo", far.host.load_seconds / ways["solo"].host.load_seconds, 1.2, at_most=True
        ),
        report.bar("sent at load, x the file", far.load_bytes / model.stat().st_size, 0.01, at_most=True),
        report.bar("bytes back per token", far.back_bytes, 4 * state + 1024, at_most=True, shape="{:.0f}"),
    ]


def _ratio(pairs: list[tuple[float, float]]) -> float | None:
    return median(theirs / ours for theirs, ours in pairs) if pairs else None


def _reached(near: Way, far: Way, wire_ms: float) -> float:
    """Speed over the wire, as a part of what the same programs without delay and the wire alone would allow."""
    return median((quick + wire_ms) / slow for quick, slow in zip(near.decode_ms, far.decode_ms, strict=True))


# -- what to measure with


def hidden_size(model: Path) -> int:
    """How many numbers the model has for a token between two layers."""
    from gguf import GGUFReader

    reader = GGUFReader(model)
    architecture = reader.fields["general.architecture"].contents()
    return int(reader.fields[f"{architecture}.embedding_length"].contents())


def built_programs() -> Path:
    """The folder of this checkout's programs. Raises BenchError."""
    found = builder.find()
    if found is None:
        raise BenchError("the engine is not built: run `scripts/mesh-llm engine build`")
    return found.server.parent


def stock_programs() -> Path | None:
    """The programs of an installed build of the same source that has no patches."""
    ours: Any = json.loads((built_programs().parent / "manifest.json").read_text())["info"]
    for manifest in sorted(builder.layout().builds.glob("*/manifest.json")):
        told = json.loads(manifest.read_text())["info"]
        if not told["patches"] and told["commit"] == ours["commit"]:
            return manifest.parent / "bin"
    return None


def default_model() -> Path:
    """The file of the default model. Raises BenchError."""
    found = sorted(paths.models().glob(f"{engine.MODEL}*.gguf"))
    if not found:
        raise BenchError(f"the model is missing: run `scripts/mesh-llm download {engine.MODEL}`")
    return found[0]
