"""The script that sets up the Python environment: what it says meanwhile, and where."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-build.lock", "requirements-dev.lock", "pyproject.toml")
# In place of a Python that would download packages: it makes a virtual environment of itself, and its pip talks.
PYTHON = f"""#!/bin/bash
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; printf '#!/bin/sh\\necho served\\n' >"$3/bin/mesh-llm"
        chmod 755 "$3/bin/mesh-llm" ;;
    "-m pip --version"*) ;;
    "-m pip install"*) echo "pip says: $CMAKE_ARGS"; sleep "${{PIP_SECONDS:-0}}"; exit "${{PIP_RC:-0}}" ;;
    "-m compileall"*) ;;
    *"sys.executable)"*) echo "$0" ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts, and a Python that downloads nothing."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in LOCKS:
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def start(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`scripts/mesh-llm --version`, whose output is ours alone."""
    values = {**os.environ, "MESH_LLM_VENV": str(checkout / "venv"), "MESH_LLM_PYTHON": str(checkout / "python")}
    command = ["bash", str(checkout / "scripts/mesh-llm"), "--version"]
    return subprocess.run(command, env={**values, **environment}, capture_output=True, text=True, timeout=60)


def test_first_start_says_each_step_and_leaves_stdout_to_the_command(checkout: Path) -> None:
    done = start(checkout, PIP_SECONDS="0.5", MESH_LLM_PROGRESS_SECONDS="0.2")
    assert (done.returncode, done.stdout) == (0, "served\n")
    steps = [line for line in done.stderr.splitlines() if line.startswith("Step ")]
    assert [step[:11] for step in steps] == ["Step 1 of 4", "Step 2 of 4", "Step 3 of 4", "Step 4 of 4"]
    assert " packages ..." in steps[2]
    assert done.stderr.count("  ... 0 s") >= 3
    assert "pip says: -DLLAMA_BUILD=OFF" in done.stderr
    assert done.stderr.endswith("The Python environment is ready.\n")
    again = start(checkout)
    assert (again.stdout, again.stderr) == ("served\n", "")


def test_failed_step_ends_the_start_at_once(checkout: Path) -> None:
    done = start(checkout, PIP_RC="3", MESH_LLM_PROGRESS_SECONDS="50")
    assert (done.returncode, done.stdout) == (1, "")
    assert "could not install the pinned build backends" in done.stderr.splitlines()[-1]
    assert not (checkout / ".venv.lock").exists()


def test_second_start_says_for_whom_it_waits(checkout: Path) -> None:
    lock = checkout / ".venv.lock"
    lock.mkdir()
    holder = subprocess.Popen(["sleep", "1"])
    try:
        (lock / "pid").write_text(f"{holder.pid}\n")
        command = "set -euo pipefail; source scripts/bootstrap.sh; mesh_bootstrap runtime"
        values = {**os.environ, "MESH_LLM_VENV": str(checkout / "venv"), "MESH_LLM_PYTHON": str(checkout / "python")}
        waiting = subprocess.Popen(
            ["bash", "-c", command],
            cwd=checkout,
            env=values,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert waiting.stderr is not None
        assert f"process {holder.pid}" in waiting.stderr.readline()
    finally:
        holder.wait()
    assert waiting.wait(60) == 0
    waiting.stderr.close()
