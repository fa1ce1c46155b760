"""`scripts/bench swarm`: the speed of a download from peers, and what uploading costs the seeders' own requests.

The download is that of a daemon: from real daemons, over lanes, to the disk, verified twice (each chunk and the whole
file). The baseline is plain TLS over as many connections, memory to memory, received by the same process in the same
round. All processes share this machine's cores, so the ratio shows the work beside moving bytes; the order of the two
alternates. Files are written to a file system in memory if there is one, so that the disk is not measured (`--disk`:
to the folder of temporary files); uploads come from the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from meshllm import paths
from meshllm.models.library.store import Store

from . import engine, report
from .children import Child
from .mesh_nodes import Node, Nodes
from .native import BenchError, compiled, load

PARTS = ("bulk", "answers")
GIVERS = 3
NAME = "benchmark.gguf"
TIMEOUT_S = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--quick", action="store_true", help="short run, less precise")
    parser.add_argument("--rounds", type=int, help="rounds (default 7; quick 3)")
    parser.add_argument("--megabytes", type=int, help="size of the file (default 1024; quick 256)")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part (repeatable)")
    parser.add_argument("--disk", action="store_true", help="take to the disk of temporary files, not to memory")
    parser.add_argument("--model", default=engine.MODEL, help=f"the real model (default {engine.MODEL})")
    parser.add_argument("--no-model", action="store_true", help="without the engine: bulk alone")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each reply of the real model (default 128)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 when a part could not be measured."""
    rounds = options.rounds or (3 if options.quick else 7)
    size = (options.megabytes or (256 if options.quick else 1024)) << 20
    parts = [part for part in PARTS if part in (options.only or PARTS) and not (part == "answers" and options.no_model)]
    measured: dict[str, Any] = {}
    notes: list[str] = []
    for part in parts:
        with ExitStack() as stack:
            scratch, taken = (stack.enter_context(_folder(in_memory)) for in_memory in (False, not options.disk))
            bench = Bench(stack, scratch, taken, size)
            try:
                measured |= bench.bulk(rounds) if part == "bulk" else bench.answers(rounds, options)
            except BenchError as error:
                notes.append(f"{part} was not measured: {error}")
    report.progress("")
    bars = _bars(measured, parts)
    if options.json:
        print(report.as_json("swarm", bars, rounds=rounds, measured=measured, notes=notes))
    else:
        title = f"swarm: medians of {rounds} rounds, a file of {size >> 20} MiB, all nodes on this machine"
        report.show(title, ["", "without", "with", "ratio"], _rows(measured), bars, notes)
    return int(bool(notes))


class Bench:
    """Nodes that have a big file, and one that takes it."""

    def __init__(self, stack: ExitStack, scratch: Path, taken: Path, size: int) -> None:
        """`taken`: where what is taken goes."""
        self._stack = stack
        self._scratch = scratch
        self._size = size
        self._nodes = Nodes(stack, scratch)
        self._models, self._taken = scratch / "models", taken / "taken"
        self._sha256 = ""

    def bulk(self, rounds: int) -> dict[str, Any]:
        """Bytes per second from three givers, against plain TLS from three servers."""
        self._make_file()
        first = self._giver("giver-0")
        givers = [first, *(self._giver(f"giver-{number}", join=first) for number in range(1, GIVERS))]
        taker = self._taker(first, GIVERS)
        servers = [self._plain(number) for number in range(GIVERS)]
        ports = " ".join(str(port) for _, port in servers)
        children = {"swarm": [giver.child for giver in givers], "plain": [child for child, _ in servers]}
        commands = {"plain": f"plain {ports}", "swarm": "swarm"}
        found: dict[str, list[dict[str, Any]]] = {"plain": [], "swarm": []}
        for number in range(-1, rounds):  # round -1 warms up: the file comes into memory, lanes are found
            for name in ("plain", "swarm") if number % 2 else ("swarm", "plain"):
                report.progress(f"bulk, round {number + 1} of {rounds}: {name}")
                before = sum(child.cpu_seconds() for child in children[name])
                one = taker.ask(commands[name])
                one["sender_cpu"] = sum(child.cpu_seconds() for child in children[name]) - before
                if number >= 0:
                    found[name].append(one)
        if any(one["vias"] not in ([], ["lane"]) or one["banned"] for one in found["swarm"]):
            raise BenchError(f"not by lanes alone, or with peers banned: {found['swarm'][0]}")
        rates = {name: [one["bytes"] / one["seconds"] / 1e6 for one in runs] for name, runs in found.items()}
        ratio = median(swarm / plain for swarm, plain in zip(rates["swarm"], rates["plain"], strict=True))
        return {
            "bulk": {name: median(values) for name, values in rates.items()} | {"ratio": ratio},
            "bulk_cpu": {
                name: [median(one[key] / one["bytes"] * 1e9 for one in runs) for key in ("cpu", "sender_cpu")]
                for name, runs in found.items()
            },
            "rounds_bulk": found,
        }

    def answers(self, rounds: int, options: argparse.Namespace) -> dict[str, Any]:
        """Tokens/s of a seeder's own model, with and without an upload at the same time."""
        self._make_file()
        real = next(iter(sorted(paths.models().glob(f"{options.model}*.gguf"))), None)
        if real is None:
            raise BenchError(f"{options.model} is not in {paths.models()}: start it once with scripts/mesh-llm")
        (self._models / real.name).symlink_to(real)
        compiled("load")
        report.progress(f"starting {options.model} ...")
        host = self._giver("giver", "--model", str(self._models / real.name))
        model = real.name.removesuffix(".gguf")
        host.child.wait_for("answer", lambda: engine.answers(host.port, model), engine.TIMEOUT_S, every=0.05)
        taker = self._taker(host, 1)
        bodies = engine.bodies(self._scratch, model, options.tokens)
        speeds: dict[str, list[float]] = {"alone": [], "giving": []}
        given = []
        for number in range(-1, rounds):
            for name in ("alone", "giving") if number % 2 else ("giving", "alone"):
                report.progress(f"answers, round {number + 1} of {rounds}: {name}")
                if name == "giving":
                    taker.ask("keep")
                    host.child.wait_for("giving", lambda: self._sharing(host)["uploads"], TIMEOUT_S)
                before = self._sharing(host)["uploaded_bytes"]
                one = load(host.port, bodies[:1], requests=2, stream=True)
                if one["errors"]:
                    raise BenchError(f"a stream failed: {one['complaint']}")
                if name == "giving":
                    rate = (self._sharing(host)["uploaded_bytes"] - before) / one["seconds"] / 1e6
                    taker.ask("rest")
                    given += [rate] if number >= 0 else []
                if number >= 0:
                    speeds[name].append(2 * options.tokens / one["seconds"])
        ratio = median(giving / alone for giving, alone in zip(speeds["giving"], speeds["alone"], strict=True))
        figures = {name: median(values) for name, values in speeds.items()} | {"ratio": ratio}
        return {"answers": figures, "given_meanwhile": median(given), "rounds_answers": speeds}

    # -- the parts

    def _make_file(self) -> None:
        """Bytes that cannot be compressed or guessed, with the notes of a file that was verified."""
        store = Store(self._models)
        store.prepare()
        whole, chunks, path = hashlib.sha256(), bytearray(), self._models / NAME
        report.progress("making a file ...")
        with path.open("wb") as file:
            for begin in range(0, self._size, store.chunk_bytes):
                chunk = os.urandom(min(store.chunk_bytes, self._size - begin))
                file.write(chunk)
                whole.update(chunk)
                chunks += whole.digest()
        self._sha256 = whole.hexdigest()
        store.record(path, self._sha256)
        store.record_chunks(self._sha256, bytes(chunks))

    def _giver(self, name: str, *options: str, join: Node | None = None) -> Node:
        options = ("--share", "all", *options)
        words = [*options, "--join", f"@{self._nodes.invite(join)}"] if join is not None else list(options)
        around = {"MESH_LLM_MODELS": str(self._models), "HF_HUB_CACHE": str(self._scratch / "no-hub-cache")}
        node = self._nodes.start(name, *words, env=around)
        node.child.wait_for("mesh", lambda: node.status()["sharing"], TIMEOUT_S)
        return node

    def _sharing(self, node: Node) -> dict[str, Any]:
        return dict(node.status()["sharing"])

    def _taker(self, host: Node, givers: int) -> Taker:
        command = [
            sys.executable, "-m", "scripts.benchmarks.swarm_taker", "--folder", str(self._taken),
            "--invite", str(self._nodes.invite(host)), "--name", NAME, "--size", str(self._size),
            "--sha256", self._sha256, "--givers", str(givers),
        ]  # fmt: skip
        return Taker(self._stack.enter_context(Child("taker", command, self._scratch)))

    def _plain(self, number: int) -> tuple[Child, int]:
        size = self._size // GIVERS + (number < self._size % GIVERS)
        command = [sys.executable, "-m", "scripts.benchmarks.swarm_plain", str(self._scratch / f"p{number}"), str(size)]
        child = self._stack.enter_context(Child(f"plain-{number}", command, self._scratch))
        return child, int(child.wait_for("port", lambda: child.said().strip(), TIMEOUT_S))


class Taker:
    """Speaks with the taking process."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._answers = 0
        self._heard()

    def ask(self, command: str) -> dict[str, Any]:
        """Its answer to a command."""
        self._child.write(command + "\n")
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        self._answers += 1

        def line() -> str:
            lines = [one for one in self._child.log.read_text().splitlines(keepends=True) if one.startswith("{")]
            return lines[self._answers - 1] if len(lines) >= self._answers and lines[-1].endswith("\n") else ""

        return dict(json.loads(self._child.wait_for("answer", line, TIMEOUT_S)))


@contextmanager
def _folder(in_memory: bool) -> Iterator[Path]:
    """For temporary files; in memory only where there is such a file system, with room for two big files."""
    memory = Path("/dev/shm")
    fits = in_memory and memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(prefix="mesh-bench-", dir=memory if fits else None) as name:
        yield Path(name)


def _rows(measured: dict[str, Any]) -> list[list[str]]:
    rows = []
    if bulk := measured.get("bulk"):
        rows.append(
            [
                "MB/s from three (plain TLS; swarm)",
                *(f"{bulk[name]:.0f}" for name in ("plain", "swarm")),
                f"{bulk['ratio']:.3f}",
            ]
        )
        for place, who in enumerate(("taker", "givers")):
            plain, swarm = (measured["bulk_cpu"][name][place] for name in ("plain", "swarm"))
            rows.append([f"CPU of the {who}, ns per byte", f"{plain:.2f}", f"{swarm:.2f}", f"{swarm / plain:.2f}"])
    if answers := measured.get("answers"):
        speeds = [f"{answers[name]:.1f}" for name in ("alone", "giving")]
        rows.append(["tokens/s of a giver (alone; giving)", *speeds, f"{answers['ratio']:.3f}"])
        rows.append(["MB/s that it gave meanwhile", "", f"{measured['given_meanwhile']:.1f}", ""])
    return rows


def _bars(measured: dict[str, Any], parts: list[str]) -> list[report.Bar]:
    names = {"bulk": "bytes from three givers, x plain TLS", "answers": "a giver's tokens/s, x without giving"}
    wanted = {"bulk": 0.8, "answers": 0.9}
    return [report.bar(names[part], measured.get(part, {}).get("ratio"), wanted[part], at_most=False) for part in parts]
