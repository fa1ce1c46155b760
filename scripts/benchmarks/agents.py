"""`scripts/bench agents`: three coding agents at work on a node, against llama-server's defaults with the same memory.

The agents work at the same time, each turn after turn: the model's answer, the call of a tool and what it returns are
appended. Measured are the time, the tokens of earlier prompts that were computed again, what a second session finds of
tools and system prompt, and the same through a client node.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import psutil

from meshllm.engine.build import builder
from tests.gguf_edit import with_value

from . import report
from .agent_shapes import Session, Sizes
from .beside import cpu_seconds, engine_of, healthy
from .children import Child, free_port, listening
from .demand_nodes import environment, wait_until_loaded, weights
from .mesh_nodes import Nodes
from .native import BenchError

AGENTS = ("claude", "codex", "opencode")
TIMEOUT_S = 3600.0
CONTEXT = 32768
# About 8,000 tokens at first, and 20,000 after ten turns.
FULL = Sizes(system=14_000, tools=14_000, result=4_600)
QUICK = Sizes(system=1_600, tools=1_600, result=400)
TIME_RATIO, AGENT_RATIO, AGAIN, FOUND, REMOTE = 0.8, 1.0, 0.05, 0.9, 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--turns", type=int, default=10, help="turns of each agent (default 10)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer (default 48)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each server, in turn (default 1)")
    parser.add_argument("--quick", action="store_true", help="three turns, prompts of about 1,000 tokens")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. `prompt`: tokens of the prompt, `cached`: of these, those that were not computed."""

    seconds: float
    prompt: int
    cached: int
    answer: int


Run = dict[str, list[Turn]]
"""The turns of each agent."""


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a bar is not met."""
    engine = builder.find()
    if engine is None:
        raise BenchError("the engine is not built; `mesh-llm engine build` builds it")
    sizes, turns = (QUICK, 3) if options.quick else (FULL, options.turns)
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch_name, ExitStack() as stack:
        scratch = Path(scratch_name)
        file = _model(scratch)
        model = file.stem
        nodes = Nodes(stack, scratch)
        report.progress(f"starting {model} ...")
        host = nodes.start("host", "--model", str(file), env=environment(file.parent))
        wait_until_loaded(host, model)
        client = nodes.start("client", "--client", "--join", f"@{nodes.invite(host)}")
        client.wait_for_model(model)
        process = engine_of(host.child)
        default = _default(stack, scratch, process)
        found: dict[str, list[Run]] = {"ours": [], "default": []}
        first: dict[str, list[Session]] = {}
        used: dict[str, list[float]] = {"ours": [], "default": []}
        servers = {"ours": (host.port, process), "default": default}
        for number in range(options.rounds):
            for way in sorted(servers, reverse=bool(number % 2)):
                report.progress(f"round {number + 1} of {options.rounds}: {way}")
                port, worker = servers[way]
                before = cpu_seconds(worker)
                first[way] = sessions(number, 0, sizes)
                found[way].append(work(port, model, first[way], turns, options.tokens))
                used[way].append(cpu_seconds(worker) - before)
        report.progress("a second session")
        last = options.rounds - 1
        shares = {
            way: _shares(server[0], model, sizes, first[way], found[way][last], last) for way, server in servers.items()
        }
        report.progress("through a client node")
        far = sessions("remote", 0, sizes)
        remote = work(client.port, model, far, min(turns, 3), options.tokens)
        shares["remote"] = _shares(client.port, model, sizes, far, remote, "remote")
    report.progress("")
    again = {"ours": _again(found["ours"][0]), "remote": _again(remote)}
    bars = _bars(found, again, shares)
    if options.json:
        turns_of = {way: [_plain(one) for one in runs] for way, runs in found.items()}
        told = {way: asdict(one) for way, one in shares.items()}
        more = {"shares": told, "remote": _plain(remote), "again": again, "cpu": used}
        print(report.as_json("agents", bars, model=model, turns=turns_of, **more))
    else:
        rows = [*_rows(found, used), *_cache_rows(again, shares)]
        title = f"agents: {', '.join(AGENTS)}, {turns} turns each, {model}"
        report.show(title, ["", "default", "ours", "remote"], rows, bars, [])
    return int(any(bar.met is False for bar in bars))


def _model(scratch: Path) -> Path:
    """A copy of the model that says it was made for a longer context."""
    folder = scratch / "models"
    folder.mkdir()
    return with_value(weights(), folder / "SmolLM2-32k.gguf", "llama.context_length", CONTEXT)


def _default(stack: ExitStack, scratch: Path, ours: psutil.Process) -> tuple[int, psutil.Process]:
    """llama-server with its defaults, but with the model, chat template and memory of `ours`."""
    words, port = ours.cmdline(), free_port()
    kept = [
        word
        for name in ("--model", "--alias", "--ctx-size", "--cache-ram", "--chat-template-file")
        if name in words
        for word in (name, words[words.index(name) + 1])
    ]
    command = [words[0], *kept, "--jinja", "--host", "127.0.0.1", "--port", str(port), "--offline"]
    child = stack.enter_context(Child("default", command, scratch, {"LLAMA_CACHE": str(scratch / "cache")}))
    child.wait_for("port", lambda: listening(port), TIMEOUT_S)
    child.wait_for("model", lambda: healthy(port), TIMEOUT_S)
    return port, child.process


def sessions(seed: object, number: int, sizes: Sizes) -> list[Session]:
    """A session of each agent."""
    return [Session(agent, seed, number, sizes) for agent in AGENTS]


def work(port: int, model: str, of: list[Session], turns: int, tokens: int) -> Run:
    """All agents at the same time. Raises BenchError."""

    made: Run = {session.agent: [] for session in of}
    failed: list[Exception] = []

    def one(session: Session) -> None:
        try:
            for _ in range(turns):
                turn, said = ask(port, session, model, tokens)
                session.answered(said)
                made[session.agent].append(turn)
        except (BenchError, OSError, ValueError, http.client.HTTPException) as error:
            failed.append(error)

    # Not a pool: that would wait for the answers when the run is ended by a signal.
    callers = [Thread(target=one, args=(session,), daemon=True) for session in of]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    if failed:
        raise BenchError(f"an agent failed: {failed[0]}")
    return made


@dataclass(frozen=True, slots=True)
class Shares:
    """Of each agent, how much of its prompt a `second` session finds computed: tools and system prompt, all but the
    user's words; and how much of its earlier prompt the first session then computes again (`back`)."""

    second: dict[str, float]
    back: dict[str, float]


def _shares(port: int, model: str, sizes: Sizes, first: list[Session], made: Run, seed: object) -> Shares:
    second, back = {}, {}
    for other in sessions(seed, 1, sizes):
        turn, _ = ask(port, other, model, 2)
        second[other.agent] = turn.cached / turn.prompt
    for session in first:
        turn, _ = ask(port, session, model, 2)
        back[session.agent] = max(0, made[session.agent][-1].prompt - turn.cached) / turn.prompt
    return Shares(second, back)


def ask(port: int, session: Session, model: str, tokens: int) -> tuple[Turn, str]:
    """The next turn of a session, and what the model said. Raises BenchError."""
    body = json.dumps(session.next_body(model, tokens))
    usage: dict[str, Any] = {}
    said: list[str] = []
    begun = time.monotonic()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request("POST", session.path, body, session.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise BenchError(f"{session.agent}: status {response.status}: {response.read(500).decode()}")
        for line in response:
            if line.startswith(b"data: {"):
                _take(json.loads(line[6:]), usage, said)
    seconds = time.monotonic() - begun
    if not usage:
        raise BenchError(f"{session.agent}: the answer did not say how many tokens it took")
    return Turn(seconds, *counts(usage)), "".join(said)


def _take(event: dict[str, Any], usage: dict[str, Any], said: list[str]) -> None:
    """The tokens and the text in an event of any of the three APIs. Raises BenchError for an error."""
    if event.get("error"):
        raise BenchError(f"the answer ended with an error: {event['error']}")
    for place in (event, event.get("message"), event.get("response")):
        if isinstance(place, dict) and isinstance(found := place.get("usage"), dict):
            usage.update({name: value for name, value in found.items() if value is not None})
    if event.get("type") == "response.output_text.delta":
        said.append(str(event["delta"]))
    elif isinstance(delta := event.get("delta"), dict):
        said.append(str(delta.get("text") or ""))
    for choice in event.get("choices") or ():
        said.append(str((choice.get("delta") or {}).get("content") or ""))


def counts(usage: dict[str, Any]) -> tuple[int, int, int]:
    """Tokens of the prompt, those of them that were cached, and those of the answer, by any API's names."""
    if "prompt_tokens" in usage:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return usage["prompt_tokens"], cached, usage.get("completion_tokens", 0)
    if "input_tokens_details" in usage:
        cached = usage["input_tokens_details"].get("cached_tokens") or 0
        return usage["input_tokens"], cached, usage.get("output_tokens", 0)
    cached = usage.get("cache_read_input_tokens") or 0
    return usage["input_tokens"] + cached, cached, usage.get("output_tokens", 0)


def again(turns: list[Turn]) -> list[float]:
    """For turns 2 and 3: the tokens of the prompt before that were computed again, as a share of the prompt."""
    pairs = pairwise(turns[:3])
    return [max(0, earlier.prompt - later.cached) / later.prompt for earlier, later in pairs]


def _again(made: Run) -> dict[str, list[float]]:
    return {agent: again(turns) for agent, turns in made.items()}


def _seconds(made: Run) -> float:
    """Until the last agent has ended."""
    return max(sum(turn.seconds for turn in turns) for turns in made.values())


def _ratios(found: dict[str, list[Run]]) -> tuple[float, float]:
    """Ours to the default: all agents together, and the worst agent."""
    pairs = list(zip(found["ours"], found["default"], strict=True))
    whole = median(_seconds(ours) / _seconds(default) for ours, default in pairs)
    each = [
        median(sum(t.seconds for t in ours[agent]) / sum(t.seconds for t in default[agent]) for ours, default in pairs)
        for agent in AGENTS
    ]
    return whole, max(each)


def _worst(shares: Iterable[Iterable[float]]) -> float:
    return max(share for one in shares for share in one)


def _bars(
    found: dict[str, list[Run]],
    again_: dict[str, dict[str, list[float]]],
    shares: dict[str, Shares],
) -> list[report.Bar]:
    whole, worst = _ratios(found)
    second, remote_second = shares["ours"].second, shares["remote"].second
    pairs = [
        (one, other)
        for agent in AGENTS
        for one, other in [
            *zip(again_["ours"][agent], again_["remote"][agent], strict=False),
            (second[agent], remote_second[agent]),
        ]
    ]
    return [
        report.bar("time of all agents, x default", whole, TIME_RATIO, at_most=True),
        report.bar("time of the slowest agent against its own, x default", worst, AGENT_RATIO, at_most=True),
        report.bar("computed again in turns 2 and 3 (worst)", _worst(again_["ours"].values()), AGAIN, at_most=True),
        report.bar("the same through a client", _worst(again_["remote"].values()), AGAIN, at_most=True),
        report.bar("found by a second session (least)", min(second.values()), FOUND, at_most=False),
        report.bar("the same through a client", min(remote_second.values()), FOUND, at_most=False),
        report.bar("local and remote shares differ by", max(abs(a - b) for a, b in pairs), REMOTE, at_most=True),
    ]


def _rows(found: dict[str, list[Run]], used: dict[str, list[float]]) -> list[list[str]]:
    def seconds(way: str, agent: str) -> str:
        return f"{median(sum(turn.seconds for turn in made[agent]) for made in found[way]):.1f}"

    rows = [[f"{agent}, s", seconds("default", agent), seconds("ours", agent), ""] for agent in AGENTS]
    whole = [f"{median(map(_seconds, found[way])):.1f}" for way in ("default", "ours")]
    cpu = [f"{median(used[way]):.1f}" for way in ("default", "ours")]
    computed = [f"{sum(_computed(made) for made in found[way]):,}" for way in ("default", "ours")]
    longest = max(turn.prompt for turns in found["ours"][0].values() for turn in turns)
    return [
        *rows,
        ["all agents, s", *whole, ""],
        ["CPU of the engine, s", *cpu, ""],
        ["tokens of prompts computed", *computed, ""],
        ["longest prompt, tokens", "", f"{longest:,}", ""],
    ]


def _computed(made: Run) -> int:
    return sum(turn.prompt - turn.cached for turns in made.values() for turn in turns)


def _cache_rows(again_: dict[str, dict[str, list[float]]], shares: dict[str, Shares]) -> list[list[str]]:
    rows = []
    ways = ("default", "ours", "remote")
    for agent in AGENTS:
        texts = [", ".join(f"{share:.1%}" for share in again_[way][agent]) for way in ("ours", "remote")]
        rows.append([f"{agent}: computed again in turns 2, 3", "", *texts])
    for agent in AGENTS:
        found = [f"{shares[way].second[agent]:.1%}" for way in ways]
        rows.append([f"{agent}: prompt found by a second session", *found])
    for agent in AGENTS:
        found = [f"{shares[way].back[agent]:.1%}" for way in ways]
        rows.append([f"{agent}: computed again by the first one after that", *found])
    return rows


def _plain(made: Run) -> dict[str, list[dict[str, Any]]]:
    return {agent: [asdict(turn) for turn in turns] for agent, turns in made.items()}
