"""Commands that cannot be undone ask first, and take no answer from a pipe."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.daemons import PROGRAM, Daemon, daemon

ACTS = [("rotate-key",), ("rotate-key", "--mesh"), ("expel", "self")]


def command(home: Path, words: tuple[str, ...], answer: str | None) -> subprocess.CompletedProcess[str]:
    """Run `words` with an `answer` typed at a terminal, or in a pipe (None)."""
    line = [str(PROGRAM), *words]
    environment = {**os.environ, "MESH_LLM_HOME": str(home), "COLUMNS": "200"}
    if answer is None:
        return subprocess.run(line, env=environment, input="y\n", capture_output=True, text=True, check=False)
    ours, theirs = os.openpty()
    with os.fdopen(ours, "wb", buffering=0) as terminal, os.fdopen(theirs) as stdin:
        terminal.write(answer.encode())
        return subprocess.run(line, env=environment, stdin=stdin, capture_output=True, text=True, check=False)


def key(node: Daemon) -> str:
    """The public mesh key and the node's own private one."""
    return (node.home / "mesh.json").read_text().split('"private"')[0] + (node.home / "node-key").read_text()


@pytest.mark.parametrize("words", ACTS)
def test_act_that_cannot_be_undone_is_asked_for_and_not_in_a_pipe(tmp_path: Path, words: tuple[str, ...]) -> None:
    with daemon(tmp_path, "--node-name", "self") as node:
        node.wait_for(lambda line: line["event"] == "idle" or (tmp_path / "mesh.json").exists(), "the mesh")
        before = key(node)
        piped = command(tmp_path, words, None)
        assert (piped.returncode, "Add --yes" in piped.stderr) == (2, True)
        refused = command(tmp_path, words, "n\n")
        assert refused.returncode == 1
        assert "?" in refused.stdout
        assert key(node) == before
        if words == ACTS[1]:
            assert command(tmp_path, words, "y\n").returncode == 0
            assert key(node) != before
