"""`scripts/bench schemas`: the public test suite of JSON Schema (draft 2020-12) against a real engine.

Of the suite's schemas, those of the parts that structured output uses are drawn with a fixed seed. Each is asked for as
`response_format`, at a high temperature, and a validator library judges the answers: validated, refused (status 400
that names a keyword of the schema), cut (`max_tokens`), or WRONG. And random texts of the engine's own grammar for each
schema, which no model would find, are judged in the same way.

Left out are `dynamicRef`, `refRemote`, `vocabulary` and `cross-draft` (schemas of schemas, the network). Suite and
validator are downloaded with pip into a temporary folder: they are not part of the repository.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshllm.wire.api.refusal import Refusal
from meshllm.wire.api.schemas import for_answer

from . import engine, report
from .children import get_json, owner_headers, post_json
from .grammar_texts import Grammar
from .native import BenchError

VALIDATOR = "jsonschema[format-nongpl]==4.26.0"
SUITE = "json/tests/draft2020-12"
LEFT_OUT = ("dynamicRef", "refRemote", "vocabulary", "cross-draft", "infinite-loop-detection", "refOfUnknownKeyword")
PARTS = ("*.json", "optional/ecmascript-regex.json", "optional/non-bmp-regex.json", "optional/format/*.json")
TEMPERATURE = 1.2
TIMEOUT_S = 600.0
# Reads pairs of schema and value, one in a line, and writes what is wrong with each.
_JUDGE = """
import json, sys
from jsonschema import Draft202012Validator as V
for line in sys.stdin:
    schema, value = json.loads(line)
    error = next(V(schema, format_checker=V.FORMAT_CHECKER).iter_errors(value), None)
    print(json.dumps(error and error.message[:300]), flush=True)
"""


@dataclass(frozen=True)
class Drawn:
    """A schema of the suite. `name`: its file and its description."""

    name: str
    schema: Any


class Judge:
    """The validator library, in an environment of its own."""

    def __init__(self, python: Path) -> None:
        self._popen = subprocess.Popen(
            [str(python), "-c", _JUDGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._popen.stdin.close()
        self._popen.wait()
        self._popen.stdout.close()

    def fault(self, schema: Any, text: str) -> str:
        """Why a text is not valid; empty if it is."""
        try:
            value = json.loads(text)
        except ValueError as error:
            return f"no JSON: {error}"
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        print(json.dumps([schema, value]), file=self._popen.stdin, flush=True)
        return json.loads(self._popen.stdout.readline()) or ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--model", default=engine.MODEL, help=f"what `mesh-llm --model` takes (default {engine.MODEL})")
    parser.add_argument("--schemas", type=int, default=300, help="how many to draw (default 300)")
    parser.add_argument("--seed", type=int, default=20, help="of the draw (default 20)")
    parser.add_argument("--answers", type=int, default=2, help="answers of the model for each schema (default 2)")
    parser.add_argument("--texts", type=int, default=40, help="texts of the grammar for each schema (default 40)")
    parser.add_argument("--tokens", type=int, default=80, help="at most for each answer (default 80)")
    parser.add_argument("--json", action="store_true", help="print all results as JSON")


def run(options: argparse.Namespace) -> int:
    """Ask and judge. Returns 0, or 1 when an answer did not validate."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-bench-")))
        report.progress("downloading the suite and the validator ...")
        python, suite = _download(scratch)
        drawn = _draw(suite, options.schemas, options.seed)
        judge = stack.enter_context(Judge(python))
        _, port, console = engine.start_with_model(stack, scratch, options.model)
        found = engine.find_socket(get_json(console, "/api/status", owner_headers(scratch / "home")))
        if found is None:
            raise BenchError("the engine's socket is not in the status")
        counts, wrong = _answers(drawn, port, judge, options)
        texts, wrong_texts = _texts(drawn, found, judge, options)
    report.progress("")
    bars = [report.bar("answers and texts that do not validate", counts["WRONG"] + texts["WRONG"], 0, at_most=True)]
    rows = [[kind, str(counts[kind]), str(texts[kind])] for kind in ("validated", "refused", "cut", "WRONG")]
    if options.json:
        print(report.as_json("schemas", bars, answers=counts, texts=texts, wrong=wrong + wrong_texts))
    else:
        title = f"{len(drawn)} schemas, {options.answers} answers and {options.texts} texts of the grammar each"
        report.show(title, ["", "answers", "texts"], rows, bars, [*wrong, *wrong_texts])
    return int(bool(wrong or wrong_texts))


def _download(scratch: Path) -> tuple[Path, Path]:
    """The Python with the validator, and the folder of the suite, which is in the validator's source distribution."""
    python = scratch / "venv" / "bin" / "python"
    sdist = [
        "download",
        "--no-deps",
        "--no-binary",
        ":all:",
        "-d",
        str(scratch),
        VALIDATOR.replace("[format-nongpl]", ""),
    ]
    for command in (
        [sys.executable, "-m", "venv", str(scratch / "venv")],
        [str(python), "-m", "pip", "-q", "install", VALIDATOR],
        [str(python), "-m", "pip", "-q", *sdist],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    [archive] = scratch.glob("jsonschema-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    return python, scratch / archive.name.removesuffix(".tar.gz") / SUITE


def _draw(suite: Path, count: int, seed: int) -> list[Drawn]:
    found = [
        Drawn(f"{path.stem}: {case['description']}", case["schema"])
        for part in PARTS
        for path in sorted(suite.glob(part))
        if path.stem not in LEFT_OUT
        for case in json.loads(path.read_text(encoding="utf-8"))
        if isinstance(case["schema"], dict)
    ]
    return random.Random(seed).sample(found, min(count, len(found)))


def _answers(
    drawn: list[Drawn], port: int, judge: Judge, options: argparse.Namespace
) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    wrong = []
    todo = [(one, seed) for one in drawn for seed in range(options.answers)]
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda pair: _ask(port, pair[0].schema, pair[1], options), todo)
        for number, ((one, _), (kind, text)) in enumerate(zip(todo, asked, strict=True), 1):
            report.progress(f"answer {number} of {len(todo)} ...")
            fault = judge.fault(one.schema, text) if kind == "validated" else text if kind == "WRONG" else ""
            counts["WRONG" if fault else kind] += 1
            if fault:
                wrong.append(f"{one.name}: {text[:200]!r}: {fault}")
    return counts, wrong


def _ask(port: int, schema: Any, seed: int, options: argparse.Namespace) -> tuple[str, str]:
    """What came of one request, and the answer's text or what is wrong."""
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": "Answer with a short JSON value."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "drawn", "schema": schema}},
        "max_tokens": options.tokens,
        "temperature": TEMPERATURE,
        "seed": seed,
    }
    try:
        choice = post_json(port, "/v1/chat/completions", body, TIMEOUT_S)["choices"][0]
    except urllib.error.HTTPError as error:
        with error:
            said = json.load(error)["error"]
        keyword = str(said.get("param")).rsplit(".", 1)[-1]
        named = error.code == 400 and (f"'{keyword}'" in said["message"])
        return ("refused", "") if named else ("WRONG", f"{error.code} {said}"[:300])
    if choice["finish_reason"] != "stop":
        return "cut", ""
    return "validated", choice["message"]["content"]


def _texts(drawn: list[Drawn], path: Path, judge: Judge, options: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Random texts of the grammars that the engine makes of the schemas."""
    counts: Counter[str] = Counter()
    wrong = []
    rng = random.Random(options.seed)
    for number, one in enumerate(drawn, 1):
        report.progress(f"grammar {number} of {len(drawn)} ...")
        kept = for_answer(one.schema)
        if isinstance(kept, Refusal):
            counts["refused"] += options.texts
            continue
        grammar = Grammar(_grammar(path, kept))
        for text in _some(grammar, rng, options.texts):
            fault = judge.fault(one.schema, text)
            counts["WRONG" if fault else "validated"] += 1
            if fault:
                wrong.append(f"{one.name}: {text[:200]!r}: {fault}")
    return counts, wrong


def _some(grammar: Grammar, rng: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        yield grammar.text(rng, rng.choice((10, 60, 300)))


def _grammar(path: Path, schema: dict[str, Any]) -> str:
    """What the engine makes of a schema: its settings name it."""
    connection = http.client.HTTPConnection("engine", timeout=TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(TIMEOUT_S)
    connection.sock.connect(str(path))
    try:
        connection.request("POST", "/completion", json.dumps({"prompt": "x", "n_predict": 0, "json_schema": schema}))
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "generation_settings" not in answer:
        raise BenchError(f"the engine refuses {json.dumps(schema)[:500]}: {answer}")
    return str(answer["generation_settings"]["grammar"])
