"""Audit, C1.3 and row 1: engine and worker ran with every privilege, the whole environment and without a filter."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from meshllm import paths
from meshllm.engine.sandbox.availability import available
from tests.daemons import MODEL
from tests.e2e.here import Site, site
from tests.netlab.nodes import Node, Status

pytestmark = [pytest.mark.engine, pytest.mark.skipif(sys.platform != "linux", reason="the sandbox of Linux")]

SPLIT = ("--model", MODEL, "--split", "--ctx-size", "1024", "--threads", "1", "--no-speculation")
SECRETS = {"HF_TOKEN": "hf_x", "MESH_LLM_API_KEY": "a-key-of-more-than-16-characters"}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def node(here: Site, name: str, *arguments: str, join: Node | None = None) -> Node:
    """A node with secrets in its environment and the model in a folder of its own."""
    folder = here.folder / f"{name}-models"
    folder.mkdir()
    real = next(paths.models().glob("SmolLM2-135M-Instruct*.gguf"))
    shutil.copy(real, folder / real.name)
    around = {"MESH_LLM_MODELS": str(folder), "HF_HOME": str(folder / "no"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    return here.node(name, *arguments, join=join, environment={**around, **SECRETS})


def committed(status: Status) -> bool:
    """Whether the node hosts a split that is served."""
    return any(split["committed"] for split in status["splits"]) and status["models"][0]["phase"] == "serving"


def running(node: Node, name: str) -> psutil.Process:
    """The one process of that name below the node's daemon."""
    below = psutil.Process(node.process.pid).children(recursive=True)
    (found,) = (process for process in below if process.name() in (name, name[:15]))
    return found


def facts(process: psutil.Process) -> dict[str, str]:
    """What the kernel says of the process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_engine_and_worker_of_a_split_run_in_the_sandbox(here: Site) -> None:
    if not available().cage:
        pytest.skip(f"no sandbox here: {available().problems}")
    host = node(here, "host", *SPLIT)
    worker = node(here, "worker", join=host)
    host.until(committed, "a split that is served")
    for process in (running(host, "llama-server"), running(worker, "ggml-rpc-server")):
        told = facts(process)
        assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
        assert int(told["CapEff"], 16) == int(told["CapBnd"], 16) == 0
        assert not set(SECRETS) & set(process.environ())
        assert process.rlimit(psutil.RLIMIT_CORE) == (1, 1)
        assert process.rlimit(psutil.RLIMIT_DATA)[0] != psutil.RLIM_INFINITY
    for one in (host, worker):
        assert one.status()["sandbox"]["caged"]
    logs = (here.folder / "host" / "logs" / f"{MODEL}.log", here.folder / "worker" / "logs" / "rpc-server.log")
    assert all("sandbox: on: no new privileges, Landlock" in log.read_text() for log in logs)
    told_to_user = here.run("host", "status").stdout
    assert "sandbox: on (Landlock" in told_to_user


def test_without_the_sandbox_only_by_the_owners_word(here: Site) -> None:
    host = node(here, "host", *SPLIT, "--no-sandbox")
    node(here, "worker", "--no-sandbox", join=host)
    status: dict[str, Any] = host.until(committed, "a split that is served")
    assert status["sandbox"] == {"caged": False, "disabled": True, "layers": "", "problems": []}
    told = facts(running(host, "llama-server"))
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", facts(psutil.Process(os.getpid()))["Seccomp"])
    assert not set(SECRETS) & set(running(host, "llama-server").environ())
