"""Memory of several models on one node: planned and taken, and models that take turns (`scripts/bench demand`)."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from . import report
from .demand_calls import Answer, ask, errors
from .demand_nodes import EngineWatch, Part, environment, folder_with_copies, wait_until_loaded
from .mesh_nodes import Node, Nodes
from .targets import MESH_LLM

TOLERANCE = 0.03
CONTEXT = 512
COMMON = ("--ctx-size", str(CONTEXT), "--no-speculation", "--threads", "1")
COPIES = 20
TOGETHER = 3
CALLERS = 4
# What a plan leaves free of the limit besides three models.
SPARE = 1.15


def memory(nodes: Nodes, *, quick: bool) -> Part:
    """Two models on one node, all contexts full: planned and taken memory."""
    report.progress("memory: two models on one node")
    folder = folder_with_copies(nodes.scratch, 2)
    names = [path.stem for path in sorted(folder.glob("*.gguf"))]
    words = [word for name in names for word in ("--model", str(folder / f"{name}.gguf"))]
    node = nodes.start("both", *words, "--serve-all", *COMMON, env=environment(folder))
    for name in names:
        wait_until_loaded(node, name)
    answers = [answer for name in names for answer in _fill(node, name)]
    found = [_engine(node, name) for name in names]
    planned = sum(engine["memory"] - engine["memory_parts"].get("prompt cache", 0) for engine in found)
    taken = sum(_taken(engine["pid"]) for engine in found)
    resident = sum(psutil.Process(engine["pid"]).memory_info().rss for engine in found)
    off = taken / planned - 1
    rows = [
        ["memory: planned for two models, without the prompt caches", _mb(planned), ""],
        ["memory: taken, with all pages of their files", _mb(taken), f"{off:+.2%} against the plan"],
        ["memory: taken, with the pages that are in RAM", _mb(resident), f"{resident / planned - 1:+.2%}"],
    ]
    failed = sum(bool(answer.error) for answer in answers)
    bars = [
        report.bar("memory: two models, off the plan by", abs(off), TOLERANCE, at_most=True, shape="{:.4f}"),
        report.bar(f"memory: errors of {len(answers)} requests to both", failed, 0, at_most=True, shape="{:.0f}"),
    ]
    figures = {"planned": planned, "taken": taken, "resident": resident, "errors": errors(answers)}
    return Part(rows, bars, [f"memory: error: {error}" for error in errors(answers)], figures)


def _fill(node: Node, model: str) -> list[Answer]:
    """Fill the context of each of its slots, all at the same time."""
    rng = random.Random(model)
    prompts = [_prompt(rng, CONTEXT - 64) for _ in range(4)]
    with ThreadPoolExecutor(len(prompts)) as callers:
        asked = [callers.submit(ask, node.port, model, stream=True, tokens=8, prompt=prompt) for prompt in prompts]
        return [future.result() for future in asked]


def _prompt(rng: random.Random, tokens: int) -> str:
    """About so many tokens that no other prompt begins with: a letter with its space is one."""
    return " ".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(tokens))


def _engine(node: Node, model: str) -> dict[str, Any]:
    return next(dict(one["engine"]) for one in node.status()["models"] if one["name"] == model)


def _taken(pid: int) -> int:
    """Bytes of RAM of an engine process, with all of its model's file: pages that were not needed yet, such as words
    of no prompt so far, come with the next requests. Pages of libraries count for each process, as in the plans."""
    regions = psutil.Process(pid).memory_maps(grouped=True)
    files = {region.path for region in regions if region.path.endswith(".gguf")}
    others = sum(region.rss for region in regions if region.path not in files)
    return others + sum(Path(path).stat().st_size for path in files)


def eviction(nodes: Nodes, *, quick: bool) -> Part:
    """20 models on disk and memory for 3: random requests, some at the same time."""
    report.progress("eviction: 20 model files")
    folder = folder_with_copies(nodes.scratch, COPIES)
    names = [path.stem for path in sorted(folder.glob("*.gguf"))]
    one = _planned_for_one(nodes, folder, names[0])
    limit = round(one * TOGETHER * SPARE / 1e9, 3)
    node = nodes.start("many", *_serving(folder, names), *COMMON, "--max-vram", str(limit), env=environment(folder))
    node.wait_for_model(names[-1], 120)
    answers, watch = _ask_all(node, names, 24 if quick else 200)
    failed = sum(bool(answer.error) for answer in answers)
    killed = sum(_was_evicted(answer, watch) for answer in answers)
    loads = len(watch.seen)
    over = watch.most / (limit * 1e9)
    words = [answer.first for answer in answers if answer.first is not None]
    rows = [
        [f"eviction: --max-vram, for {TOGETHER} models of {_mb(one)}", f"{limit * 1000:.0f} MB", ""],
        ["eviction: most memory of the engines at once", _mb(watch.most), f"{over:.3f} of --max-vram"],
        ["eviction: most engines at once", f"{watch.together}", f"{watch.samples} samples"],
        [f"eviction: {len(answers)} requests, {CALLERS} at once", f"{loads} loads", f"{failed} errors"],
        ["eviction: first token, median", f"{median(words):.2f} s" if words else "none", _worst(words)],
    ]
    bars = [
        report.bar(f"eviction: errors of {len(answers)} requests", failed, 0, at_most=True, shape="{:.0f}"),
        report.bar("eviction: models unloaded while they answered", killed, 0, at_most=True, shape="{:.0f}"),
        report.bar("eviction: memory, x --max-vram", over, 1 + TOLERANCE, at_most=True, shape="{:.3f}"),
        report.bar("eviction: engines at once", watch.together, TOGETHER, at_most=False, shape="{:.0f}"),
    ]
    figures = {"limit": limit, "most": watch.most, "together": watch.together, "loads": loads, "first_s": words}
    notes = [f"eviction: error: {error}" for error in errors(answers)]
    return Part(rows, bars, notes, {**figures, "requests": len(answers), "errors": errors(answers)})


def _serving(folder: Path, names: Sequence[str]) -> list[str]:
    """The options by which a node offers all models of its disk: on demand, or by name in versions without that."""
    help_text = subprocess.run([str(MESH_LLM), "--help"], capture_output=True, text=True, check=True).stdout
    if "--on-demand" in help_text:
        return ["--on-demand", "--share", "all"]
    return [*(word for name in names for word in ("--model", str(folder / f"{name}.gguf"))), "--serve-all"]


def _planned_for_one(nodes: Nodes, folder: Path, name: str) -> int:
    """Bytes that are planned for one of the models, without its prompt cache."""
    with ExitStack() as stack:
        words = ("--model", str(folder / f"{name}.gguf"), *COMMON)
        node = nodes.start("one", *words, stack=stack, env=environment(folder))
        wait_until_loaded(node, name)
        engine = _engine(node, name)
        return int(engine["memory"] - engine["memory_parts"].get("prompt cache", 0))


def _ask_all(node: Node, names: Sequence[str], count: int) -> tuple[list[Answer], EngineWatch]:
    """So many random requests, and what was seen of the engines meanwhile."""
    rng = random.Random(14)
    asks = [(rng.choice(names), turn % 2 == 0, _prompt(rng, rng.randrange(8, CONTEXT // 3))) for turn in range(count)]
    answers: list[Answer] = []

    def one(model: str, stream: bool, prompt: str) -> None:
        answers.append(ask(node.port, model, stream=stream, tokens=12, prompt=prompt))
        report.progress(f"eviction: {len(answers)} of {count} requests")

    with EngineWatch(node).running() as watch, ThreadPoolExecutor(CALLERS) as callers:
        for done in [callers.submit(one, *asked) for asked in asks]:
            done.result()
    return answers, watch


def _was_evicted(answer: Answer, watch: EngineWatch) -> bool:
    """Whether a process of its model was gone between its first and its last token."""
    if answer.word is None:
        return False
    ends = [seen.gone for seen in watch.seen.values() if seen.model == answer.model and seen.gone is not None]
    return any(answer.word < end < answer.ended for end in ends)


def _worst(words: Sequence[float]) -> str:
    return f"longest {max(words):.2f} s" if words else ""


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
