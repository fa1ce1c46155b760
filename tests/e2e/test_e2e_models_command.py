"""`mesh-llm models` and `mesh-llm download` beside a node that serves."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.daemons import MODEL, OPEN_WAIT_SECONDS, PROGRAM, Daemon


def run(node: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`mesh-llm` to its end, with the home of the node, and nobody to answer a question."""
    return subprocess.run(
        [str(PROGRAM), *arguments],
        env={**os.environ, "MESH_LLM_HOME": str(node.home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=OPEN_WAIT_SECONDS,
    )


@pytest.mark.engine
def test_remove_rejects_a_served_model(served: Daemon) -> None:
    """Without --yes: were it not refused, nobody would be there to be asked, and the model stayed all the same."""
    done = run(served, "models", "remove", MODEL)
    assert done.returncode == 2
    assert f"The running node serves {MODEL}" in done.stderr
    listed = json.loads(run(served, "models", "--json").stdout)
    assert MODEL in [item["name"] for item in listed]


@pytest.mark.engine
def test_lists_use_the_running_nodes_machine_facts(served: Daemon) -> None:
    listed = {entry["name"]: entry for entry in json.loads(run(served, "download", "--json").stdout)}
    assert listed[MODEL]["on_disk"] in ("yes", "not-verified")
    assert listed[MODEL]["fit"]["verdict"] in ("fits", "less-context")
    told = json.loads(run(served, "models", "show", MODEL, "--json").stdout)
    assert told["header"]["layers"] == 30
    assert told["forecast"]["context_length"] == 8192
