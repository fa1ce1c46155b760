"""Everything that runs while something is installed or built is pinned by a hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-build.lock")


def pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package in a lock file."""
    found: dict[str, tuple[str, list[str]]] = {}
    current = ""
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([a-z0-9._-]+)==([^\s;\\]+)", line):
            current = match[1]
            found[current] = (match[2], [])
        elif match := re.search(r"--hash=sha256:([0-9a-f]{64})\b", line):
            found[current][1].append(match[1])
    return found


def required(requirement: str) -> str:
    """The package that a requirement names."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower().replace("_", "-")


def test_every_pin_has_a_hash() -> None:
    for name in LOCKS:
        assert pins(name)
        assert [package for package, (_, hashes) in pins(name).items() if not hashes] == []


def test_build_lock_has_every_backend() -> None:
    build = pins("requirements-build.lock")
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    # The backend of llama-cpp-python, the only package of the locks that has no wheels, and what it needs itself.
    theirs = ["scikit-build-core", "packaging", "pathspec"]
    assert {required(text) for text in (*ours, *theirs, "pip")} <= set(build)
    for text in (ROOT / "requirements-build.in").read_text(encoding="utf-8").splitlines():
        assert text.startswith("#") or required(text) in build, text
    runtime = pins("requirements.lock")
    assert [name for name in build if name in runtime and runtime[name][0] != build[name][0]] == []


def test_source_distributions_are_known() -> None:
    """A package with a single file in the lock is an sdist (or one universal wheel) whose backend must be pinned."""
    single = {name for name, (_, hashes) in pins("requirements.lock").items() if len(hashes) == 1}
    assert "llama-cpp-python" in single
    assert single - {"llama-cpp-python"} == set()


def test_pip_and_npm_run_nothing_that_is_not_pinned() -> None:
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    text = {path.name: path.read_text(encoding="utf-8").replace("\\\n", " ") for path in scripts}
    installs = [
        line.strip()
        for lines in text.values()
        for line in lines.splitlines()
        if re.search(r"pip[\" ].*\binstall\b", line) and not line.lstrip().startswith(("#", "mesh_die"))
    ]
    assert len(installs) >= 5
    for line in installs:
        assert "--require-hashes" in line or "--no-index" in line, line
        # Of a lock with a source distribution, and of the checkout, pip builds a wheel here.
        if '$lock"' in line or "--editable" in line:
            assert "--no-build-isolation" in line, line
    calls = [
        line for lines in text.values() for line in lines.splitlines() if re.search(r"\bnpm (ci|install|i)\b", line)
    ]
    assert calls
    assert [line for line in calls if "npm ci --ignore-scripts" not in line] == []
