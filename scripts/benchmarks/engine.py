"""`scripts/bench engine`: a real model, requested directly (the engine's socket) and through the gateway, in turn.

Both paths get the same prompts, the same number of tokens and greedy sampling.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from . import report
from .children import Child, free_port, get_json, owner_headers, post_json
from .native import BenchError, compiled, load
from .targets import MESH_LLM

MODEL = "SmolLM2-135M-Instruct"
STREAMS = 4
TIMEOUT_S = 1800.0  # the first start may build the engine and fetch the model
PROMPTS = [
    "Explain in plain words how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper and a storm.",
    "List the planets of the solar system and say one thing about each.",
    "What should a beginner know about growing tomatoes?",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--model", default=MODEL, help=f"what `mesh-llm --model` takes (default {MODEL})")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per reply (default 128)")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of runs (default 6)")
    parser.add_argument("--socket", type=Path, help="the engine's socket, where /api/status does not tell it")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def find_socket(status: Any) -> Path | None:
    """The first path of a Unix socket named anywhere in the models of a status payload."""
    inside = status.get("models", status) if isinstance(status, dict) else status
    pending = [inside]
    while pending:
        value = pending.pop()
        if isinstance(value, str) and value.endswith(".sock"):
            return Path(value.removeprefix("unix://").removeprefix("unix:"))
        pending += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return None


def start_with_model(stack: ExitStack, scratch: Path, model: str) -> tuple[Child, int, int]:
    """A daemon that has answered for `model`, its API port and its console port."""
    port, console = free_port(), free_port()
    command = [str(MESH_LLM), "--model", model, "--port", str(port), "--console", str(console)]
    child = stack.enter_context(Child("mesh-llm", command, scratch, {"MESH_LLM_HOME": str(scratch / "home")}))
    child.wait_for("answered chat request", lambda: answers(port, model), TIMEOUT_S, every=0.05)
    return child, port, console


def answers(port: int, model: str) -> bool:
    """Whether the model has answered a chat request. Raises OSError when not."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return bool(post_json(port, "/v1/chat/completions", body, TIMEOUT_S)["choices"])


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 when a stream failed."""
    compiled("load")
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch_name, ExitStack() as stack:
        scratch = Path(scratch_name)
        report.progress(f"starting {options.model} ...")
        child, port, console = start_with_model(stack, scratch, options.model)
        socket = options.socket or find_socket(get_json(console, "/api/status", owner_headers(scratch / "home")))
        if socket is None:
            raise BenchError("/api/status names no engine socket; give its path with --socket")
        ways: dict[str, int | Path] = {"direct": socket, "ours": port}
        rounds = _measure(ways, child, scratch, options)
    failed = sum(one["errors"] for by_way in rounds.values() for run in by_way for one in run.values() if one)
    bars = [
        report.bar(f"tokens/s at {STREAMS} streams, x direct", _ratio(rounds, "many"), 0.99, at_most=False),
        report.bar("failed streams", failed, 0, at_most=True, shape="{:.0f}"),
    ]
    if options.json:
        print(report.as_json("engine", bars, model=options.model, tokens=options.tokens, rounds=rounds))
    else:
        title = f"engine: {options.model}, {options.tokens} tokens, medians of {options.rounds} rounds"
        report.show(title, ["", "direct", "ours", "ratio"], _rows(rounds), bars, _complaints(rounds))
    return int(failed > 0)


Rounds = dict[str, list[dict[str, Any]]]


def _measure(ways: dict[str, int | Path], child: Child, scratch: Path, options: argparse.Namespace) -> Rounds:
    asked = bodies(scratch, options.model, options.tokens)
    rounds: Rounds = {way: [] for way in ways}
    for number in range(-1, options.rounds):  # round -1 warms up
        report.progress(f"round {number + 1} of {options.rounds}")
        order = list(ways) if number % 2 else list(reversed(ways))
        for way in order:
            # The engine closes each connection after a stream without saying so: directly, one is opened for each.
            fresh = way == "direct"
            many = load(ways[way], asked, connections=STREAMS, requests=2, stream=True, fresh=fresh)
            many["tokens_per_s"] = STREAMS * 2 * options.tokens / many["seconds"]
            one = load(ways[way], asked[:1], requests=1, stream=True, fresh=fresh)
            one["tokens_per_s"] = options.tokens / one["seconds"]
            if number >= 0:
                rounds[way].append({"many": many, "one": one})
    report.progress("")
    return rounds


def bodies(scratch: Path, model: str, tokens: int) -> list[Path]:
    """Files with requests for streams of exactly `tokens` tokens each, one for each prompt."""
    files = []
    for number, prompt in enumerate(PROMPTS):
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        file = scratch / f"prompt-{number}.json"
        file.write_text(json.dumps(body))
        files.append(file)
    return files


def _first_event_ms(report_: dict[str, Any]) -> float:
    first = report_["first_event_us"]
    return float(first["median"]) / 1000 if first else float("nan")


def _ratio(rounds: Rounds, which: str) -> float | None:
    pairs = zip(rounds["ours"], rounds["direct"], strict=True)
    return float(median(ours[which]["tokens_per_s"] / direct[which]["tokens_per_s"] for ours, direct in pairs))


def _rows(rounds: Rounds) -> list[list[str]]:
    rows = []
    for which, caption in (("many", f"{STREAMS} streams"), ("one", "1 stream")):
        speeds = [median(one[which]["tokens_per_s"] for one in rounds[way]) for way in ("direct", "ours")]
        rows.append([f"tokens/s, {caption}", *(f"{speed:.1f}" for speed in speeds), f"{_ratio(rounds, which):.3f}"])
        waits = [median(_first_event_ms(one[which]) for one in rounds[way]) for way in ("direct", "ours")]
        added = f"{waits[1] - waits[0]:+.2f} ms"
        rows.append([f"ms to the first event, {caption}", *(f"{wait:.2f}" for wait in waits), added])
    return rows


def _complaints(rounds: Rounds) -> list[str]:
    found = {
        f"{way}: {load_['complaint']}"
        for way, runs in rounds.items()
        for run in runs
        for load_ in run.values()
        if load_["complaint"]
    }
    return sorted(found)
