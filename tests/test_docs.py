"""The documents: links lead somewhere, and the paths and classes that they name exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "console/README.md", ROOT / "llama.cpp/README.md"]
)
PACKAGES = {path.name for path in (ROOT / "meshllm").iterdir() if path.is_dir() or path.suffix == ".py"}


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as code hosts make them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def classes() -> set[str]:
    """Every class of the package."""
    return {
        node.name
        for path in (ROOT / "meshllm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_link_to_what_exists(document: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_paths_that_exist(document: Path) -> None:
    wrong = []
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", document.read_text(encoding="utf-8")):
        first = name.split("/")[0]
        if first in PACKAGES and first not in {"console"}:
            exists = (ROOT / "meshllm" / name).exists()
        elif first in {"meshllm", "tests", "scripts", "docs", "llama.cpp"}:
            exists = (ROOT / name).exists()
        else:
            continue
        if not exists and name != "meshllm/web/page":  # built
            wrong.append(name)
    assert wrong == []


def test_architecture_and_protocol_name_classes_that_exist() -> None:
    known = classes()
    wrong = []
    for document in (ROOT / "docs/architecture.md", ROOT / "docs/protocol.md"):
        if document.exists():
            text = document.read_text(encoding="utf-8")
            wrong += [name for name in re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", text) if name not in known]
    assert wrong == []


def test_generated_documents_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
