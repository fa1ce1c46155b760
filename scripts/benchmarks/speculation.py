"""`scripts/bench speculation`: a real model with and without speculative decoding.

All engines run at once and get each request in turn, so that other load of the machine affects all alike. The result is
the ratio of their times per token, request by request. Repetitive and other texts, greedy and sampled, and one or
several parallel requests are reported separately.

An engine's n-gram store keeps what it has read and written for all requests: every engine gets each text once, and new
engines are started for the next round and the next kind of request.

On a busy machine the times of a single text are noisy, and the worst of several more so. The number of draft tokens and
accepted tokens does not depend on the machine: the worst text is also reported by counting, with the median cost of a
draft token (in tokens) over all texts of a row.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from typing import Any, Final

from meshllm import paths
from meshllm.core.memory.speculation import PLAIN, DraftSource, Speculation
from meshllm.engine.build import builder
from meshllm.engine.processes.llama_server import SPIN_ROUNDS, SPIN_VARIABLE, ServerPlan, arguments, environment

from . import report
from .children import Child
from .cut import cut
from .native import BenchError
from .speculation_texts import PACKAGE, Text, plain, repeating

TIMEOUT_S: Final = 600.0
STREAMS: Final = 4
CONTEXT: Final = 4096
MODEL: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE: Final = PACKAGE / "models" / "catalog" / "templates" / "smollm2-tools.jinja"
WARM: Final = 0.8
MANNERS: Final = {"greedy": (0.0, 1), "warm": (WARM, 1), "together": (0.0, STREAMS)}
"""How the texts are asked for: temperature, and how many at a time."""
WARM_UP, WARM_UP_TOKENS = Text("warm-up", "What is the capital of France?"), 8
CPU_TICK_S: Final = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--model", type=Path, default=paths.models() / MODEL, help="the model's file")
    parser.add_argument("--draft", type=Path, help="a draft's file, to be measured too")
    parser.add_argument(
        "--cut", type=int, default=0, metavar="LAYERS", help="measure the model's first layers as draft"
    )
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of each reply (default 160)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each text is asked for (default 5)")
    parser.add_argument("--text", action="append", metavar="NAME", help="ask for this text alone (repeatable)")
    parser.add_argument("--how", action="append", choices=MANNERS, help="ask in this way alone (repeatable)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


@dataclass
class Answer:
    """One reply: milliseconds for each token (`cpu`: of the processor's, shared with what was answered beside it),
    tokens, drafted tokens, accepted tokens, and the text."""

    pace: float
    tokens: int
    drafted: int
    accepted: int
    text: str
    cpu: float = 0.0


@dataclass
class Cell:
    """What one engine did with one kind of texts: answers by text, in the order of rounds."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def all(self) -> Iterator[Answer]:
        for answers in self.answers.values():
            yield from answers


Cells = dict[tuple[str, float, int], dict[str, Cell]]
"""By the kind of texts, temperature and streams; then by engine."""


class Engine:
    """A llama-server on a Unix socket, started as the daemon starts it."""

    def __init__(self, stack: ExitStack, scratch: Path, name: str, plan: ServerPlan) -> None:
        found = builder.find()
        if found is None:
            raise BenchError("the engine is not built (mesh-llm engine build)")
        self.name = name
        self.socket = scratch / f"{name}.sock"
        self.socket.unlink(missing_ok=True)  # of one that was here before
        words = list(arguments(found.server, plan, self.socket))
        told = {SPIN_VARIABLE: os.environ.get(SPIN_VARIABLE, SPIN_ROUNDS), **environment(plan)}
        self.child = stack.enter_context(Child(name, words, scratch, told))

    def wait(self) -> None:
        """Until it answers. Raises BenchError."""
        self.child.wait_for("answering engine", lambda: self.ask("/health", None), TIMEOUT_S, every=0.05)

    def answer(self, text: Text, temperature: float, tokens: int, seed: int) -> Answer:
        """Its answer to `text`. Raises BenchError."""
        asked = {"messages": [{"role": "user", "content": text.asked}]}
        prompt = self.ask("/apply-template", asked)["prompt"] + text.begun
        body = {"prompt": prompt, "n_predict": tokens, "temperature": temperature, "seed": seed}
        told = self.ask("/completion", body)
        times = told["timings"]
        return Answer(
            pace=times["predicted_ms"] / times["predicted_n"],
            tokens=times["predicted_n"],
            drafted=times.get("draft_n", 0),
            accepted=times.get("draft_n_accepted", 0),
            text=told["content"],
        )

    def ask(self, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON answered to `body` (None: to a GET). Raises BenchError, and OSError while it does not answer."""
        connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(TIMEOUT_S)
            connection.sock.connect(str(self.socket))
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        if reply.status != 200:
            if body is None:
                raise ConnectionError(text[:200])
            raise BenchError(f"{self.name} answers {path} with {reply.status}: {text[:200].decode(errors='replace')}")
        return json.loads(text)


def run(options: argparse.Namespace) -> int:
    """Measure and print; 0. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as name:
        scratch = Path(name)
        ways: dict[str, tuple[Speculation, Path | None]] = {
            "none": (PLAIN, None),
            "n-grams": (Speculation(DraftSource.NGRAMS), None),
        }
        if options.draft is not None:
            ways["draft"] = (Speculation(DraftSource.DRAFT, options.draft.stem), options.draft)
        if options.cut:
            smaller = cut(options.model, scratch / "cut.gguf", options.cut)
            ways["cut"] = (Speculation(DraftSource.DRAFT, "cut"), smaller)

        def start(stack: ExitStack) -> list[Engine]:
            engines = [Engine(stack, scratch, way, _plan(options.model, *what)) for way, what in ways.items()]
            for engine in engines:
                engine.wait()
                engine.answer(WARM_UP, 0.0, WARM_UP_TOKENS, 0)
            return engines

        cells = _measure(start, options)
    rows = [facts for key, by_way in cells.items() for facts in figures(key, by_way)]
    bars = []
    for way in list(ways)[1:]:
        unhelped = [facts for facts in rows if facts["way"] == way and facts["texts"] == "plain"]
        for what, value in (("mean of texts", "ratio"), ("worst text, counted", "least_counted")):
            least = min((facts[value] for facts in unhelped), default=None)
            bars.append(report.bar(f"{way}, plain texts, x none: {what}", least, 0.97, at_most=False))
    if options.json:
        print(report.as_json("speculation", bars, rows=rows))
    else:
        _show(options, rows, bars)
    return 0


def _show(options: argparse.Namespace, rows: list[dict[str, Any]], bars: list[report.Bar]) -> None:
    title = f"speculation: {options.model.stem}, {options.tokens} tokens, {options.rounds} rounds"
    columns = ["texts", "speculation", "ms/token", "x none", "CPU", "worst", "quartiles", "counted"]
    notes = [
        "x none: of each text the median of rounds, of these the mean; CPU: the same of the processor's time",
        "worst: median and quartiles of the worst text; counted: the worst text by its draft counts at the given price",
        "drafted: of all tokens; accepted: of drafted; price: of a draft token, in tokens; same: replies as with none",
    ]
    report.show(title, [*columns, "drafted", "accepted", "price", "same"], [_row(facts) for facts in rows], bars, notes)


def _plan(model: Path, speculation: Speculation, draft: Path | None) -> ServerPlan:
    template = TEMPLATE if model.name == MODEL else None
    return ServerPlan("m", model, CONTEXT, STREAMS, chat_template=template, speculation=speculation, draft_path=draft)


def _measure(start: Callable[[ExitStack], list[Engine]], options: argparse.Namespace) -> Cells:
    """Every way of asking and every kind of texts meets new engines, in each round."""
    cells: Cells = {}
    for number in range(options.rounds):
        for kind, texts in _texts(options.text).items():
            for manner in options.how or MANNERS:
                report.progress(f"round {number + 1} of {options.rounds}: {kind}, {manner}")
                temperature, streams = MANNERS[manner]
                with ExitStack() as stack, ThreadPoolExecutor(STREAMS) as pool:
                    engines = start(stack)
                    by_way = cells.setdefault((kind, temperature, streams), {one.name: Cell() for one in engines})
                    for first in range(0, len(texts), streams):
                        group = texts[first : first + streams]
                        for engine in engines if number % 2 else reversed(engines):
                            answers = _together(pool, engine, group, temperature, options.tokens, number + 1)
                            for text, answer in zip(group, answers, strict=True):
                                by_way[engine.name].answers.setdefault(text.name, []).append(answer)
    report.progress("")
    return cells


def _texts(names: Sequence[str] | None) -> dict[str, list[Text]]:
    """The texts of those names (None: all), by their kind. Raises BenchError."""
    kinds = {"repeating": repeating(), "plain": plain()}
    if names is not None:
        known = [text.name for texts in kinds.values() for text in texts]
        if unknown := set(names).difference(known):
            raise BenchError(f"unknown text {', '.join(sorted(unknown))}; known texts: {', '.join(known)}")
        kinds = {kind: [text for text in texts if text.name in names] for kind, texts in kinds.items()}
    return {kind: texts for kind, texts in kinds.items() if texts}


def _together(
    pool: ThreadPoolExecutor, engine: Engine, texts: Sequence[Text], temperature: float, tokens: int, seed: int
) -> list[Answer]:
    """The answers to texts that are asked for at the same time."""
    before = engine.child.cpu_seconds()
    jobs = [pool.submit(engine.answer, text, temperature, tokens, seed) for text in texts]
    answers = [job.result() for job in jobs]
    spent = max(CPU_TICK_S, engine.child.cpu_seconds() - before)
    for answer in answers:
        answer.cpu = spent * 1000 / sum(one.tokens for one in answers)
    return answers


def _ratios(base: Cell, other: Cell, of: Callable[[Answer], float] = lambda answer: answer.pace) -> list[list[float]]:
    """How many times as fast, for each text in each round."""
    return [
        [of(one) / of(another) for one, another in zip(base.answers[text], answers, strict=True)]
        for text, answers in other.answers.items()
    ]


def _price(base: Cell, other: Cell) -> float:
    """The cost of a draft token in tokens: the median of all answers with draft tokens; 0 without any."""
    pairs = zip(base.all(), other.all(), strict=True)
    # An answer's time, in tokens of an engine without speculation: one step per token that was not an accepted draft
    # token, and the price of each draft token.
    prices = [
        (guessing.pace / alone.pace * guessing.tokens - guessing.tokens + guessing.accepted) / guessing.drafted
        for alone, guessing in pairs
        if guessing.drafted
    ]
    return median(prices) if prices else 0.0


def _counted(answers: Sequence[Answer], price: float) -> float:
    """The speed-up of a text computed from its draft counts alone."""
    tokens = sum(one.tokens for one in answers)
    return tokens / sum(one.tokens - one.accepted + price * one.drafted for one in answers)


def figures(key: tuple[str, float, int], by_way: dict[str, Cell]) -> list[dict[str, Any]]:
    """The figures of each engine for one kind of text."""
    kind, temperature, streams = key
    found = []
    for way, cell in by_way.items():
        answers, base = list(cell.all()), list(by_way["none"].all())
        drafted, accepted = sum(one.drafted for one in answers), sum(one.accepted for one in answers)
        price = _price(by_way["none"], cell)
        texts = {
            name: {
                "ratio": median(ratios),
                "quartiles": _quartiles(ratios),
                "counted": _counted(cell.answers[name], price),
                "tokens": [one.tokens for one in cell.answers[name]],
                "drafted": [one.drafted for one in cell.answers[name]],
                "accepted": [one.accepted for one in cell.answers[name]],
            }
            for name, ratios in zip(cell.answers, _ratios(by_way["none"], cell), strict=True)
        }
        worst = min(texts.values(), key=lambda text: text["ratio"])
        by_cpu = _ratios(by_way["none"], cell, lambda answer: answer.cpu)
        found.append(
            {
                "texts": kind,
                "temperature": temperature,
                "streams": streams,
                "way": way,
                "ms_a_token": median(one.pace for one in answers),
                "ratio": geometric_mean(text["ratio"] for text in texts.values()),
                "ratio_cpu": geometric_mean(median(ratios) for ratios in by_cpu),
                "least": worst["ratio"],
                "least_quartiles": worst["quartiles"],
                "least_counted": min(text["counted"] for text in texts.values()),
                "drafted": drafted / sum(one.tokens for one in answers),
                "accepted": accepted / drafted if drafted else None,
                "price": price if drafted else None,
                "same": sum(one.text == another.text for one, another in zip(base, answers, strict=True)),
                "answers": len(answers),
                "by_text": texts,
            }
        )
    return found


def _quartiles(ratios: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of a single one it is both."""
    if len(ratios) == 1:
        return ratios[0], ratios[0]
    first, _, third = quantiles(ratios, n=4, method="inclusive")
    return first, third


def _row(facts: dict[str, Any]) -> list[str]:
    how = f"at {facts['temperature']}" if facts["temperature"] else "greedy"
    together = f", {facts['streams']} together" if facts["streams"] > 1 else ""
    first, third = facts["least_quartiles"]
    return [
        f"{facts['texts']}, {how}{together}",
        facts["way"],
        f"{facts['ms_a_token']:.1f}",
        f"{facts['ratio']:.3f}",
        f"{facts['ratio_cpu']:.3f}",
        f"{facts['least']:.3f}",
        f"{first:.2f}, {third:.2f}",
        f"{facts['least_counted']:.3f}",
        f"{facts['drafted']:.2f}",
        "" if facts["accepted"] is None else f"{facts['accepted']:.2f}",
        "" if facts["price"] is None else f"{facts['price']:.2f}",
        f"{facts['same']} of {facts['answers']}",
    ]
