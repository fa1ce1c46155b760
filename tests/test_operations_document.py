"""docs/operations.md agrees with the code: metrics, environment variables, quoted messages, options, files."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest
from typer.main import get_command

from meshllm.cli.entry import app
from meshllm.web.gateway.metrics import DESCRIPTIONS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "meshllm").rglob("*.py"))}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table rows in the section with that heading, without the tables' heads."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    body = [line for before, line in pairwise(lines) if not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body]


def texts() -> list[str]:
    """The strings of the program; NUL stands for each value in an f-string and each `%s`."""
    found = []
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", "\0", node.value))
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
    return found


TEXTS = texts()
MESSAGES = [row[0].strip("`") for row in rows("Troubleshooting")]


@pytest.mark.parametrize("message", MESSAGES)
def test_quoted_message_is_in_the_source(message: str) -> None:
    parts = [re.escape(part) for part in message.split("…")]
    pattern = re.compile("[^\n]*".join(parts))
    assert any(pattern.search(text) for text in TEXTS), message


def test_metrics_table_is_that_of_the_code() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows("Metrics")}
    assert table == {
        name: [each.kind, ", ".join(f"`{label}`" for label in each.labels) or "-", each.help]
        for name, each in DESCRIPTIONS.items()
    }


def test_every_environment_variable_of_ours_is_described() -> None:
    used = {name for source in SOURCES.values() for name in re.findall(r"\bMESH_LLM_[A-Z_]+[A-Z]\b", source)}
    described = {name for row in rows("Environment variables") for name in re.findall(r"MESH_LLM_[A-Z_]+", row[0])}
    assert used == described


def test_every_option_in_the_document_exists() -> None:
    command = get_command(app)
    commands = [command, *(command.get_command(None, name) for name in command.list_commands(None))]  # type: ignore[attr-defined]
    for group in list(commands):
        if hasattr(group, "list_commands") and group is not command:
            commands += [group.get_command(None, name) for name in group.list_commands(None)]
    known = {
        option
        for each in commands
        for parameter in each.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    known |= {"--user", "--now"}  # systemctl's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", DOCUMENT)) - known == set()
