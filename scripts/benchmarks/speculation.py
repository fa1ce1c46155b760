"""`scripts/bench speculation`: a real model that guesses ahead, against the same one that does not.

Both engines are up at once and get every request in turn, so that whatever else the machine does meets both. What
counts is the ratio of their times for a token, taken request by request. Texts that repeat what was said and texts that
do not are told apart, greedy and not, one at a time and several.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, Final

from meshllm import paths
from meshllm.core.speculation import PLAIN, Guessing, Speculation
from meshllm.engine import build
from meshllm.engine.llama_server import ServerPlan, arguments

from . import report
from .children import Child
from .cut import cut
from .native import BenchError
from .speculation_texts import PACKAGE, Text, plain, repeating

PATIENCE_S: Final = 600.0
STREAMS: Final = 4
CONTEXT: Final = 4096
MODEL: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEMPLATE: Final = PACKAGE / "models" / "templates" / "smollm2-tools.jinja"
WARM: Final = 0.8
CPU_TICK_S: Final = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--model", type=Path, default=paths.models() / MODEL, help="the model's file")
    parser.add_argument("--draft", type=Path, help="a draft's file, to be measured too")
    parser.add_argument(
        "--cut", type=int, default=0, metavar="LAYERS", help="measure the model's first layers as draft"
    )
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of each reply (default 160)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each text is asked for (default 5)")
    parser.add_argument("--json", action="store_true", help="everything that was measured, as JSON")


@dataclass
class Answer:
    """One reply: milliseconds for each token (`cpu`: of the processor's, shared with what was answered beside it),
    tokens, of these guessed, of these right, and the text."""

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
        found = build.find()
        if found is None:
            raise BenchError("the engine is not built (mesh-llm engine build)")
        self.name = name
        self.socket = scratch / f"{name}.sock"
        self.child = stack.enter_context(Child(name, list(arguments(found.server, plan, self.socket)), scratch))

    def wait(self) -> None:
        """Until it answers. Raises BenchError."""
        self.child.wait_for("answering engine", lambda: self.ask("/health", None), PATIENCE_S, every=0.05)

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
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(PATIENCE_S)
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
    """Measure and print; 0."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as name, ExitStack() as stack:
        scratch = Path(name)
        ways: dict[str, tuple[Speculation, Path | None]] = {
            "none": (PLAIN, None),
            "n-grams": (Speculation(Guessing.NGRAMS), None),
        }
        if options.draft is not None:
            ways["draft"] = (Speculation(Guessing.DRAFT, options.draft.stem), options.draft)
        if options.cut:
            smaller = cut(options.model, scratch / "cut.gguf", options.cut)
            ways["cut"] = (Speculation(Guessing.DRAFT, "cut"), smaller)
        engines = [Engine(stack, scratch, way, _plan(options.model, *what)) for way, what in ways.items()]
        for engine in engines:
            engine.wait()
        cells = _measure(engines, options)
    bars = [
        report.bar(f"{way}: texts that do not repeat, x none", _least(cells, way, "plain"), 0.97, at_most=False)
        for way in list(ways)[1:]
    ]
    rows = [facts for key, by_way in cells.items() for facts in _facts(key, by_way)]
    if options.json:
        print(report.as_json("speculation", bars, rows=rows))
    else:
        columns = [
            "texts",
            "speculation",
            "ms/token",
            "x none",
            "worst text",
            "x none, CPU",
            "guessed",
            "right",
            "same text",
        ]
        title = f"speculation: {options.model.stem}, {options.tokens} tokens, {options.rounds} rounds"
        report.show(
            title,
            columns,
            [_row(facts) for facts in rows],
            bars,
            ["x none: of each text the median of rounds, of these the mean"],
        )
    return 0


def _plan(model: Path, speculation: Speculation, draft: Path | None) -> ServerPlan:
    template = TEMPLATE if model.name == MODEL else None
    return ServerPlan("m", model, CONTEXT, STREAMS, chat_template=template, speculation=speculation, draft_path=draft)


def _measure(engines: Sequence[Engine], options: argparse.Namespace) -> Cells:
    cells: Cells = {}
    kinds = {"repeating": repeating(), "plain": plain()}
    with ThreadPoolExecutor(STREAMS) as pool:
        for number in range(-1, options.rounds):  # round -1 warms up
            report.progress(f"round {number + 1} of {options.rounds}")
            for kind, texts in kinds.items():
                for temperature, streams in ((0.0, 1), (WARM, 1), (0.0, STREAMS)):
                    by_way = cells.setdefault((kind, temperature, streams), {one.name: Cell() for one in engines})
                    for first in range(0, len(texts), streams):
                        group = texts[first : first + streams]
                        for engine in engines if number % 2 else reversed(engines):
                            answers = _together(pool, engine, group, temperature, options.tokens, number + 1)
                            for text, answer in zip(group, answers if number >= 0 else [], strict=number >= 0):
                                by_way[engine.name].answers.setdefault(text.name, []).append(answer)
    report.progress("")
    return cells


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


def _ratios(base: Cell, other: Cell, of: Callable[[Answer], float] = lambda answer: answer.pace) -> list[float]:
    """How many times as fast, for each text: the median of rounds."""
    return [
        median(of(one) / of(another) for one, another in zip(base.answers[text], answers, strict=True))
        for text, answers in other.answers.items()
    ]


def _least(cells: Cells, way: str, kind: str) -> float:
    """The worst of the means over texts."""
    return min(geometric_mean(_ratios(by_way["none"], by_way[way])) for key, by_way in cells.items() if key[0] == kind)


def _facts(key: tuple[str, float, int], by_way: dict[str, Cell]) -> list[dict[str, Any]]:
    """What is to be told of each engine, for one kind of texts."""
    kind, temperature, streams = key
    found = []
    for way, cell in by_way.items():
        answers, base = list(cell.all()), list(by_way["none"].all())
        ratios = _ratios(by_way["none"], cell)
        drafted, accepted = sum(one.drafted for one in answers), sum(one.accepted for one in answers)
        found.append(
            {
                "texts": kind,
                "temperature": temperature,
                "streams": streams,
                "way": way,
                "ms_a_token": median(one.pace for one in answers),
                "ratio": geometric_mean(ratios),
                "least": min(ratios),
                "ratio_cpu": geometric_mean(_ratios(by_way["none"], cell, lambda answer: answer.cpu)),
                "guessed": drafted / sum(one.tokens for one in answers),
                "right": accepted / drafted if drafted else None,
                "same": sum(one.text == another.text for one, another in zip(base, answers, strict=True)),
                "answers": len(answers),
            }
        )
    return found


def _row(facts: dict[str, Any]) -> list[str]:
    how = f"at {facts['temperature']}" if facts["temperature"] else "greedy"
    return [
        f"{facts['texts']}, {how}, {facts['streams']} at a time",
        facts["way"],
        f"{facts['ms_a_token']:.1f}",
        f"{facts['ratio']:.3f}",
        f"{facts['least']:.3f}",
        f"{facts['ratio_cpu']:.3f}",
        f"{facts['guessed']:.2f}",
        "" if facts["right"] is None else f"{facts['right']:.2f}",
        f"{facts['same']} of {facts['answers']}",
    ]
