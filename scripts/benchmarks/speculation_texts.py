"""Prompts for the engines: texts with repetitive and with other answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "meshllm"


@dataclass(frozen=True)
class Text:
    """A request. `begun`: how the answer begins; a small model needs a start to see that it should copy."""

    name: str
    asked: str
    begun: str = ""


def _edit(name: str, language: str, source: str, old: str, new: str, lines: int) -> Text:
    """A file with one word changed everywhere. The answer is given up to `lines` lines."""
    edited = source.replace(old, new)
    asked = f"Change {old} to {new} in this file. Answer with the whole file.\n\n```{language}\n{source}```"
    return Text(name, asked, f"```{language}\n" + "".join(edited.splitlines(keepends=True)[:lines]))


def _people() -> str:
    names = ["Alice", "Bob", "Carol", "Dave", "Erin", "Frank", "Grace", "Heidi", "Ivan", "Judy"]
    cities = ["Berlin", "Paris", "London", "Rome", "Madrid", "Vienna", "Oslo", "Prague", "Dublin", "Athens"]
    people = [
        {"id": number, "name": name, "role": "developer", "city": city, "active": number % 2 == 0}
        for number, (name, city) in enumerate(zip(names, cities, strict=True))
    ]
    return "".join(json.dumps(person) + "\n" for person in people)


def _listing() -> str:
    names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
    return "".join(
        f"drwxr-xr-x 2 root root 4096 Nov 25 13:{10 + at} {name}\n" for at, name in enumerate([*names, "nu"])
    )


def _orders() -> str:
    names = ["Meyer", "Rossi", "Dupont", "Novak", "Larsen"]
    lines = [
        f"{1000 + at},2026-{1 + at % 12:02d}-{1 + at * 11 % 28:02d},{names[at * 7 % 5]},{at * 61 % 900}.50,pending\n"
        for at in range(15)
    ]
    return "id,date,customer,amount,status\n" + "".join(lines)


MINUTES: Final = (
    "Minutes of the garden club, 4 March. Present: Ms Okafor (chair), Mr Lind, Mr Perez, Ms Tanaka. The seed order was "
    "discussed; Mr Lind has found a supplier in Ghent whose prices are a fifth lower, but delivery takes three weeks. "
    "It was agreed to order beans, chard and six kinds of tomato from him and the rest as before. Ms Tanaka reported "
    "that the pump at the west gate leaks; a plumber has been asked. The summer fair will be on 12 July. Mr Perez will "
    "write to the school about the use of its hall should it rain. The next meeting is on 1 April at seven."
)


def repeating() -> list[Text]:
    """Edited code, transformed data, quoted output of tools, a quoted text."""
    progress = (PACKAGE / "models" / "transfer" / "progress.py").read_text(encoding="utf-8")
    rules = (PACKAGE / "core" / "membership" / "mesh_merge.py").read_text(encoding="utf-8")
    return [
        _edit("code", "python", progress, "Progress", "Advance", 12),
        _edit("more code", "python", rules, "MeshId", "Network", 10),
        _edit("data", "json", _people(), "developer", "engineer", 3),
        _edit("listing", "text", _listing(), "root", "user", 3),
        _edit("orders", "csv", _orders(), "pending", "shipped", 3),
        Text("quote", f"Repeat this text.\n\n{MINUTES}", MINUTES[:116]),
    ]


def plain() -> list[Text]:
    """Prose, advice, lists, new programs, a summary: next to nothing of it stands in the question."""
    return [
        Text("bicycle", "Explain in plain words how a bicycle stays upright."),
        Text("story", "Write a short story about a lighthouse keeper and a storm."),
        Text("planets", "List the planets of the solar system and say one thing about each."),
        Text("tomatoes", "What should a beginner know about growing tomatoes?"),
        Text("letter", "Write a letter to a friend about a week in the mountains."),
        Text("bread", "Describe how bread is made, from grain to loaf."),
        Text("report", "My manager wants a weekly report for the first time. What should be in it, and how long?"),
        Text("program", "Write a Python program that counts the words of a text file."),
        Text("tips", "Give me ten tips for a job interview."),
        Text("vaccines", "Explain how vaccines work."),
        Text("script", "Write a shell script that backs up a folder every night, and explain each line."),
        Text("minutes", f"Summarize these minutes in three sentences.\n\n{MINUTES}"),
    ]
