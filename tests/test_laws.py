"""The laws of the design that can be read off the source: who may import whom, and who may do what."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "meshllm"
FILES = sorted(PACKAGE.rglob("*.py"))

PURE_FORBIDDEN = {
    "asyncio", "time", "random", "os", "socket", "subprocess", "logging", "aiohttp", "aioquic", "secrets", "threading",
    "pathlib", "datetime", "ssl", "selectors", "tempfile", "shutil",
}  # fmt: skip
STANDARD = {
    "__future__", "collections", "dataclasses", "enum", "re", "json", "math", "typing", "functools", "itertools",
    "urllib", "hashlib", "hmac", "struct", "base64", "heapq", "bisect", "string", "abc", "types", "contextlib",
    "ipaddress", "fractions", "binascii",
}  # fmt: skip
# Modules of `util` that `core` and `wire` may import: they keep the same rules themselves.
PURE_UTIL = {"backoff", "format", "progress", "rate_limiter", "rate_meter"}
SIDEWAYS = ("net", "engine", "models", "machine", "web", "board", "agents")
ONLY_IN = {
    "aioquic": ("net",),
    "aiohttp": ("web", "models", "net", "cli"),
    "httptools": ("web",),
    "subprocess": ("engine", "machine", "agents"),
}


def package_of(path: Path) -> str:
    """The folder of the package a file lies in; the empty string for the package itself."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports at run time, absolute, and the line. What is only for type checkers is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["meshllm", *path.relative_to(PACKAGE).parts[:-1]]
                base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def offences(path: Path) -> list[str]:
    """What a file does that its room may not."""
    here, found = package_of(path), []
    for name, line in imports(path):
        top, parts = name.split(".")[0], name.split(".")
        other = parts[1] if top == "meshllm" and len(parts) > 1 else None
        pure_util = here == "util" and path.stem in PURE_UTIL
        if here in ("core", "wire") or pure_util:
            ours = top == "meshllm" and (
                other in {"core": ("core", "errors"), "wire": ("core", "wire", "errors"), "util": ("errors",)}[here]
                or (other == "util" and (len(parts) == 2 or parts[2] in PURE_UTIL))
            )
            if top in PURE_FORBIDDEN or not (ours or top in STANDARD or (here == "wire" and top == "msgpack")):
                found.append(f"line {line}: {here} imports {name}")
        if here == "util" and other not in (None, "util", "errors"):
            found.append(f"line {line}: {here} imports {name}")
        if here in SIDEWAYS and other in (*SIDEWAYS, "daemon", "cli") and other != here:
            found.append(f"line {line}: {here} imports {name}")
        if top in ONLY_IN and here not in ONLY_IN[top]:
            found.append(f"line {line}: {name} is only for {', '.join(ONLY_IN[top])}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_the_laws(path: Path) -> None:
    assert offences(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tasks_and_processes_start_only_where_they_may(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = node.attr if isinstance(node, ast.Attribute) else ""
        if name in ("create_task", "ensure_future") and path != PACKAGE / "tasks.py":
            found.append(f"line {node.lineno}: {name}")
        starts = name in ("create_subprocess_exec", "create_subprocess_shell", "Popen")
        if starts and package_of(path) not in ONLY_IN["subprocess"]:
            found.append(f"line {node.lineno}: {name}")
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_waits_end_by_asyncio_timeout(path: Path) -> None:
    """Python 3.11's `asyncio.wait_for` loses a cancellation when what it waits for ends in the same moment (cpython
    issue 86296): the task then runs on, and the daemon that waits for its end never stops."""
    names = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute))
    assert [f"line {node.lineno}" for node in names if ast.unparse(node) == "asyncio.wait_for"] == []


def test_import_checker_reports_forbidden_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "core").mkdir()
    (tmp_path / "web").mkdir()
    bad = tmp_path / "core" / "bad.py"
    bad.write_text("import time\nfrom meshllm.web import gateway\n")
    sideways = tmp_path / "web" / "bad.py"
    sideways.write_text("from ..engine import build\nimport subprocess\n")
    assert len(offences(bad)) >= 2
    assert len(offences(sideways)) >= 2
    impure = tmp_path / "core" / "impure.py"
    impure.write_text("from meshllm.util.threads import in_thread\nfrom meshllm.util.backoff import backoff\n")
    assert {line.split(":")[0] for line in offences(impure)} == {"line 1"}
    (tmp_path / "util").mkdir()
    pure = tmp_path / "util" / "backoff.py"
    pure.write_text("import random\n")
    assert len(offences(pure)) == 1


def test_class_names_are_unique_in_the_package() -> None:
    """One name, one thing: a reader who searches for a class finds one definition."""
    where: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert {name: places for name, places in where.items() if len(places) > 1} == {}


def import_graph() -> dict[str, set[str]]:
    """Which modules of meshllm each module imports at run time, in functions too; packages' `__init__` left out."""
    names = {module_name(path): path for path in FILES}
    packages = {name for name, path in names.items() if path.name == "__init__.py"}
    return {
        name: {found for found, _ in imports(path) if found in names and found not in packages} - {name}
        for name, path in names.items()
        if name not in packages
    }


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = ["meshllm", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = []
            while not component or component[-1] != name:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_modules_import_each_other_in_no_circle() -> None:
    assert circles(import_graph()) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]


TESTS = sorted((PACKAGE.parent / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_threads_of_tests_do_not_outlive_the_suite(path: Path) -> None:
    """The interpreter waits at its exit for a thread that is no daemon: a test that fails before it ends what it waits
    for would hold the whole run."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Thread", "threading.Thread"):
            daemon = [word.value for word in node.keywords if word.arg == "daemon"]
            if [ast.unparse(value) for value in daemon] != ["True"]:
                found.append(f"line {node.lineno}")
    assert found == []


def test_tests_mirror_the_package() -> None:
    """Each package has a folder of tests, and a folder below one of them has a package of the same name."""
    tests = PACKAGE.parent / "tests"
    packages = {str(path.parent.relative_to(PACKAGE)) for path in FILES if path.name != "__init__.py"} - {"."}
    folders = {str(path.parent.relative_to(tests)) for path in tests.rglob("test_*.py")} - {"."}
    assert sorted(packages - folders) == []
    tops = {package.split("/")[0] for package in packages}
    assert sorted(folder for folder in folders if folder.split("/")[0] in tops and folder not in packages) == []


def test_child_pythons_do_not_import_from_the_working_directory() -> None:
    """`python -m` puts the working directory first on the path: a `json.py` in it would run. -P or -I prevents it."""
    started = re.compile(r"sys\.executable,\s*(\"-\w+\")")
    found = []
    for path in FILES:
        for first in started.findall(path.read_text(encoding="utf-8")):
            if first not in ('"-P"', '"-I"'):
                found.append(f"{path.relative_to(PACKAGE)}: python {first}")
    assert found == []


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them by name alone: with two of one name the whole suite cannot be collected."""
    names = [path.name for path in (PACKAGE.parent / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
