"""The clients of Ollama that people use work with a node that serves, and through a client of its mesh."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from meshllm import paths
from tests.daemons import MODEL
from tests.e2e.here import serves, site
from tests.engine_samples import embedder
from tests.netlab.nodes import Node
from tests.sdk import tool_caller

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PYTHON = Path(__file__).parent / "python"
EMBEDDER = "tiny-embedder"
NETWORK_IS_AWAY = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|No matching distribution")
INSTALL_SECONDS = 600
RUN_SECONDS = 1800

Nodes = dict[str, tuple[Node, str]]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A host of three models with a port for Ollama, and a client of its mesh: (node, URL of Ollama's API)."""
    vectors = embedder(tmp_path_factory.mktemp("models") / f"{EMBEDDER}.gguf")
    environment = {"MESH_LLM_MODELS": str(paths.models())}
    with site(tmp_path_factory.mktemp("mesh")) as here, tool_caller.tool_caller() as backend:
        models = ("--model", MODEL, "--model", str(vectors), "--serve-all", "--backend", backend)
        host = here.node("host", *models, "--ctx-size", "2048", "--ollama-port", "0", environment=environment)
        missing = {MODEL, EMBEDDER}
        host.wait_for(lambda line: not _without_served(missing, line), "both models being served")
        client = here.node("client", "--client", join=host)
        for model in (MODEL, EMBEDDER, tool_caller.NAME):
            client.until(serves(model), model)
        listening = next(line for line in host.lines if line["event"] == "listening")
        yield {
            "host": (host, listening["ollama"]),
            "client": (client, client.base_url.rstrip("/").removesuffix("/v1")),
        }


def _without_served(missing: set[str], line: dict[str, Any]) -> set[str]:
    """`missing` without the model that a daemon's line says is served."""
    if line["event"] == "model" and line["phase"] == "serving":
        missing.discard(line["model"])
    return missing


@pytest.fixture(scope="session")
def python_clients() -> Path:
    """A folder with the Python clients, installed once outside the checkout."""
    wanted = PYTHON / "requirements.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]
    place = paths.cache() / "sdk-tests" / f"python-{version}-{digest}"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not (place / "installed").exists():
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade")
            install = subprocess.run(
                [*pip, "--target", str(place), "--requirement", str(wanted)],
                capture_output=True, text=True, timeout=INSTALL_SECONDS,
            )  # fmt: skip
            if install.returncode and NETWORK_IS_AWAY.search(install.stderr):
                pytest.skip("the Python clients of Ollama cannot be fetched: the package index cannot be reached")
            assert install.returncode == 0, install.stderr[-2000:]
            (place / "installed").touch()
    return place


def models(url: str) -> dict[str, str]:
    return {"BASE_URL": url, "MODEL": MODEL, "EMBEDDER": EMBEDDER, "CALLER": tool_caller.NAME}


@pytest.mark.parametrize("at", ["host", "client"])
def test_python_clients(nodes: Nodes, python_clients: Path, at: str) -> None:
    done = subprocess.run(
        [sys.executable, str(PYTHON / "ollama_run.py")],
        env={**os.environ, **models(nodes[at][1]), "PYTHONPATH": str(python_clients)},
        capture_output=True, text=True, timeout=RUN_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 10
    assert set(found.values()) == {"ok"}, found


@pytest.mark.parametrize("at", ["host", "client"])
def test_javascript_clients(nodes: Nodes, run_script: Callable[..., str], at: str) -> None:
    found = json.loads(run_script("ollama.mjs", environment=models(nodes[at][1])))
    assert len(found) > 10
    assert set(found.values()) == {"ok"}, found
