"""Writes the generated documents: `docs/map.md` (every module, from its first docstring line) and `docs/states.md`
(state diagrams, from the transition tables).

`scripts/docs.py` writes them; `scripts/docs.py --check` fails if a document is not what would be written.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "meshllm"
# The public names that a row of the map lists.
MAX_NAMES = 12
# (module, title, what the states belong to). Each module has a table TRANSITIONS (or the one named after a colon):
# {state: states that may follow}, or {(state, next state): why}.
MACHINES = [
    ("meshllm.core.membership.table", "Peer", "What this node knows of another node."),
    (
        "meshllm.core.split.lease",
        "Lease",
        "The lease of one worker of a pipeline split, at the host and at the worker.",
    ),
    ("meshllm.core.serving.phases:ENGINE_TRANSITIONS", "Engine", "The engine of this node: found or built."),
    ("meshllm.core.serving.phases:FILE_TRANSITIONS", "Model file", "The file of a model that this node serves."),
    ("meshllm.core.serving.phases:SERVER_TRANSITIONS", "Model server", "The llama-server of a model, in the core."),
    ("meshllm.engine.processes.child", "Engine process", "A llama-server or rpc-server under supervision."),
]


def head(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def cell(text: str) -> str:
    """A text inside a table."""
    return text.replace("|", "\\|")


def public_names(path: Path) -> str:
    """The classes and functions of a module that have no leading underscore."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    more = "" if len(names) <= MAX_NAMES else f", {len(names) - MAX_NAMES} more"
    return ", ".join(f"`{name}`" for name in names[:MAX_NAMES]) + more


def package_map() -> str:
    """One section for each package, one row for each module."""
    lines = [
        "# Map",
        "",
        "Every module: the first docstring line, and its public names. Written by `scripts/docs.py`; do not edit.",
        "[architecture.md](architecture.md) says how the packages work together.",
    ]
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")}, key=lambda p: (p != PACKAGE, p))
    for folder in folders:
        modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        if not modules:
            continue
        caption = head(folder / "__init__.py") if (folder / "__init__.py").exists() else ""
        lines += ["", f"## `{folder.relative_to(ROOT)}/`", ""]
        if caption:
            lines += [caption, ""]
        lines += ["| module | what it is | public names |", "|---|---|---|"]
        lines += [f"| `{path.name}` | {cell(head(path))} | {cell(public_names(path))} |" for path in modules]
    return "\n".join(lines) + "\n"


def edges(table: dict[object, object]) -> list[tuple[str, str, str]]:
    """(state, next state, why) for each transition of a table of either form."""
    found = []
    for key, value in table.items():
        if isinstance(key, tuple):
            found.append((name(key[0]), name(key[1]), str(value)))
        else:
            assert isinstance(value, frozenset | set | tuple | list | dict)
            found += [(name(key), name(after), "") for after in sorted(value, key=name)]
    return found


def name(state: object) -> str:
    """A state as the diagram shows it."""
    return state.name.lower() if isinstance(state, Enum) else "none" if state is None else str(state)


def states() -> str:
    """A mermaid diagram for each transition table."""
    lines = [
        "# State diagrams",
        "",
        "Drawn by `scripts/docs.py` from the transition tables in the code, which refuse every other transition.",
    ]
    for name_of_table, title, what in MACHINES:
        module, _, attribute = name_of_table.partition(":")
        table = getattr(importlib.import_module(module), attribute or "TRANSITIONS")
        where = module.replace(".", "/") + ".py"
        lines += ["", f"## {title}", "", f"{what} Table: `{where}`.", "", "```mermaid", "stateDiagram-v2"]
        lines += [f"    {a} --> {b}" + (f": {why}" if why else "") for a, b, why in edges(table)]
        lines += ["```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a document is out of date")
    check = parser.parse_args().check
    sys.path.insert(0, str(ROOT))
    stale = []
    for path, text in ((ROOT / "docs/map.md", package_map()), (ROOT / "docs/states.md", states())):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale and check:
        print(f"Out of date: {', '.join(stale)}. Run: python scripts/docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
