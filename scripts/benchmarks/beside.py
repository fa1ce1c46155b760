"""`scripts/bench beside`: a stream beside a long prompt of another caller, through a node and at an engine with
llama.cpp's default batch.

The node learns first: it answers one such prompt and is started again, because an engine takes the batch that suits its
machine at a start (`meshllm/daemon/prompt_speeds.py`). `--no-learning` leaves that out.

The second engine is the node's own command line with `--batch-size 2048 --ubatch-size 512`. Both are asked in turn; the
one that is not asked does nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import psutil

from meshllm.daemon import prompt_speeds
from meshllm.engine.build import builder
from meshllm.engine.processes.llama_server import SPIN_ROUNDS, SPIN_VARIABLE

from . import report
from .children import Child, free_port, listening
from .engine import MODEL, start_with_model
from .native import BenchError

TIMEOUT_S = 900.0
LEARN_S = 30.0
# A word of one token, so that the prompt has about as many tokens as words.
WORD = " zebra"
DEFAULT_BATCH = ("--batch-size", "2048", "--ubatch-size", "512")
LEAST_TOKENS = 20
WORST_GAP_S = 1.5
PROMPT_RATIO = 1.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--model", default=MODEL, help=f"what `mesh-llm --model` takes (default {MODEL})")
    parser.add_argument("--prompt", type=int, default=8000, help="tokens of the prompt (default 8000)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of prompts (default 3)")
    parser.add_argument("--quick", action="store_true", help="one pair of prompts")
    parser.add_argument("--no-learning", action="store_true", help="measure the first start of a node")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


@dataclass(frozen=True, slots=True)
class Beside:
    """What a stream got while a prompt was computed beside it. `passed`: its events, of a token or more each; `gap`:
    the longest time without one, in seconds; `prompt`: seconds that the prompt took; `tokens`: of the prompt; `cpu`:
    seconds of processor time that the engine took meanwhile, which other programs change less."""

    passed: int
    gap: float
    prompt: float
    tokens: int
    cpu: float


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a bar is not met."""
    engine = builder.find()
    if engine is None:
        raise BenchError("the engine is not built; `mesh-llm engine build` builds it")
    rounds = 1 if options.quick else options.rounds
    found: dict[str, list[Beside]] = {"ours": [], "default": []}
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch_name, ExitStack() as stack:
        scratch = Path(scratch_name)
        if not options.no_learning:
            report.progress(f"learning how fast {options.model} reads ...")
            with ExitStack() as first:
                _, port, _ = start_with_model(first, scratch, options.model)
                learn(scratch / "home" / prompt_speeds.FILE, port, options.model, options.prompt)
        report.progress(f"starting {options.model} ...")
        child, port, _ = start_with_model(stack, scratch, options.model)
        ours = engine_of(child)
        ways = {"ours": (port, ours), "default": start_again(stack, scratch, ours, list(DEFAULT_BATCH))}
        for number in range(rounds):
            for way in sorted(ways, reverse=bool(number % 2)):
                report.progress(f"round {number + 1} of {rounds}: {way}")
                found[way].append(beside(*ways[way], options.model, options.prompt, number))
    report.progress("")
    bars = _bars(found)
    if options.json:
        measured = {way: [asdict(one) for one in all_] for way, all_ in found.items()}
        print(report.as_json("beside", bars, model=options.model, measured=measured))
    else:
        report.show(f"beside: {options.model}", ["", "default batch", "ours"], _rows(found), bars, [])
    return int(any(bar.met is False for bar in bars))


def learn(file: Path, port: int, model: str, tokens: int) -> None:
    """Let the node read a long prompt, and wait until it has written how fast that was. Raises BenchError."""
    _post(port, {"model": model, "prompt": f"Learn:{WORD * (tokens - 8)}", "max_tokens": 1, "cache_prompt": False})
    deadline = time.monotonic() + LEARN_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise BenchError(f"the node has not written {file.name} after a long prompt")
        time.sleep(0.1)


def engine_of(child: Child) -> psutil.Process:
    """The only llama-server process of a daemon. Raises BenchError without one."""
    for process in child.process.children(recursive=True):
        if process.name() == "llama-server":
            return process
    raise BenchError("the node has no llama-server process")


def start_again(
    stack: ExitStack, scratch: Path, engine: psutil.Process, options: list[str]
) -> tuple[int, psutil.Process]:
    """Another engine with the command line of `engine`, on a port of its own; `options` replace its own."""
    port = free_port()
    words = engine.cmdline()
    for name, value in [("--host", "127.0.0.1"), *zip(options[::2], options[1::2], strict=True)]:
        if name in words:
            words[words.index(name) + 1] = value
        else:
            words += [name, value]
    spin = {SPIN_VARIABLE: os.environ.get(SPIN_VARIABLE, SPIN_ROUNDS)}
    child = stack.enter_context(Child("engine", [*words, "--port", str(port)], scratch, spin))
    child.wait_for("port", lambda: listening(port), TIMEOUT_S)
    child.wait_for("model", lambda: healthy(port), TIMEOUT_S)
    return port, child.process


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process since its start."""
    times = process.cpu_times()
    return float(times.user + times.system)


def healthy(port: int) -> bool:
    """Whether the engine at a loopback port has loaded its model. Raises OSError while it does not answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200


def beside(port: int, engine: psutil.Process, model: str, tokens: int, number: int) -> Beside:
    """One stream, and a prompt of about `tokens` tokens of another caller beside it. Raises BenchError."""
    stream = _Stream(port, model)
    stream.thread.start()
    try:
        if not stream.first.wait(TIMEOUT_S):
            raise BenchError(f"the stream did not begin: {stream.error}")
        text = f"Number {number}:{WORD * (tokens - 8)}"
        body = {"model": model, "prompt": text, "max_tokens": 1, "cache_prompt": False}
        used, begun = cpu_seconds(engine), time.monotonic()
        answer = _post(port, body)
        ended, used = time.monotonic(), cpu_seconds(engine) - used
    finally:
        stream.stop.set()
        stream.thread.join(TIMEOUT_S)
    if stream.error or not stream.times or stream.times[-1] < ended:
        raise BenchError(f"the stream ended before the prompt was computed: {stream.error or 'it was too short'}")
    times = [begun, *(at for at in stream.times if begun < at < ended), ended]
    gap = max(later - earlier for earlier, later in pairwise(times))
    return Beside(len(times) - 2, gap, ended - begun, int(answer["usage"]["prompt_tokens"]), used)


class _Stream:
    """A stream that is read in a thread until `stop` is set; `times`: when its events came (monotonic)."""

    def __init__(self, port: int, model: str) -> None:
        self.thread = Thread(target=self._run, args=(port, model), daemon=True)
        self.first, self.stop = Event(), Event()
        self.times: list[float] = []
        self.error = ""

    def _run(self, port: int, model: str) -> None:
        body = {"model": model, "prompt": "Once", "max_tokens": 7000, "stream": True, "ignore_eos": True}
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
                connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
                response = connection.getresponse()
                if response.status != 200:
                    self.error = response.read(300).decode("utf-8", "replace")
                    return
                for line in response:
                    if line.startswith(b"data: {"):
                        self.times.append(time.monotonic())
                        self.first.set()
                        if self.stop.is_set():
                            return
        except (OSError, http.client.HTTPException) as error:
            self.error = repr(error)
        finally:
            self.first.set()


def _post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
    if response.status != 200:
        raise BenchError(f"the prompt was refused: {answer}")
    return dict(answer)


def _bars(found: dict[str, list[Beside]]) -> list[report.Bar]:
    ours = found["ours"]
    ratio = median(one.prompt / other.prompt for one, other in zip(ours, found["default"], strict=True))
    return [
        report.bar(
            "events of the stream meanwhile (least)",
            min(one.passed for one in ours),
            LEAST_TOKENS,
            at_most=False,
            shape="{:.0f}",
        ),
        report.bar("longest gap of the stream, s", max(one.gap for one in ours), WORST_GAP_S, at_most=True),
        report.bar("time of the prompt, x default batch", ratio, PROMPT_RATIO, at_most=True),
    ]


def _rows(found: dict[str, list[Beside]]) -> list[list[str]]:
    def row(caption: str, texts: dict[str, str]) -> list[str]:
        return [caption, texts["default"], texts["ours"]]

    return [
        row("tokens of the prompt", {way: str(all_[0].tokens) for way, all_ in found.items()}),
        row("events of the stream meanwhile", {way: f"{median(o.passed for o in a):.0f}" for way, a in found.items()}),
        row("longest gap, s", {way: f"{max(one.gap for one in all_):.2f}" for way, all_ in found.items()}),
        row("prompt, s", {way: f"{median(one.prompt for one in all_):.1f}" for way, all_ in found.items()}),
        row("the same, CPU s of the engine", {way: f"{median(o.cpu for o in a):.1f}" for way, a in found.items()}),
    ]
