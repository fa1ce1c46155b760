"""The official SDK of the Model Context Protocol, as a client in each of its modes, over stdio and HTTP.

`scripts/mcp_judges` also runs the inspector and the conformance suite.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from meshllm import paths
from tests.local_board import LocalBoard
from tests.mcp_http_rig import TOKEN, served
from tests.mcp_rig import NEW, OLD, Clock

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(__file__).parent / "python"
NETWORK_IS_AWAY = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|No matching distribution")
INSTALL_SECONDS = 600
RUN_SECONDS = 120
VERSIONS = {"legacy": OLD, NEW: NEW, "auto": NEW}


@pytest.fixture(scope="session")
def sdk() -> Path:
    """A folder with the SDK, installed once outside the checkout."""
    wanted = PYTHON / "mcp-requirements.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()[:16]
    place = paths.cache() / "sdk-tests" / f"mcp-{version}-{digest}"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not (place / "installed").exists():
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade")
            install = subprocess.run(
                [*pip, "--target", str(place), "--requirement", str(wanted)],
                capture_output=True, text=True, timeout=INSTALL_SECONDS,
            )  # fmt: skip
            if install.returncode and NETWORK_IS_AWAY.search(install.stderr):
                pytest.skip("the MCP SDK cannot be fetched: the package index cannot be reached")
            assert install.returncode == 0, install.stderr[-2000:]
            (place / "installed").touch()
    return place


async def run(sdk: Path, *arguments: str) -> dict[str, Any]:
    """What the SDK saw."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(PYTHON / "mcp_run.py"), *arguments,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(sdk)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(RUN_SECONDS):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-3000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def check(found: dict[str, Any], mode: str, *, tells: bool = True) -> None:
    """The findings of `mcp_run.py` are as they must be."""
    assert found["version"] == VERSIONS[mode]
    assert found["tools"] == ["blackboard_post", "blackboard_search", "blackboard_feed", "blackboard_claim"]
    is_error, post = found["post"]
    assert not is_error
    assert post["kind"] == "finding"
    assert post["id"][:12] in found["feed"]
    assert "FINDING: it works" in found["search"]
    assert found["claim"]["granted"]
    assert found["wrong"][0]
    assert "one of note, status" in found["wrong"][1]
    assert found["resources"] == ["board://feed", "board://claims"]
    assert found["templates"] == ["board://room/{r}", "board://thread/{id}"]
    assert "issue-1" in found["read"]
    assert found["missing"] == (-32002 if mode == "legacy" else -32602)
    assert found["prompts"] == ["catch-up", "hand-off"]
    assert "FINDING: it works" in found["prompt"]
    assert "timeout" in found
    assert found["updated"] == ("board://feed" if tells else "")


@pytest.mark.parametrize("mode", VERSIONS)
async def test_the_sdk_over_stdio(sdk: Path, mode: str) -> None:
    """`-I` and the path in the code: the SDK's folder is for the client alone."""
    code = f"import sys, asyncio; sys.path.insert(0, {str(ROOT)!r}); from tests.mcp_rig import serve_stdio; "
    check(await run(sdk, mode, "stdio", sys.executable, "-I", "-c", f"{code}asyncio.run(serve_stdio(''))"), mode)


@pytest.mark.parametrize("mode", VERSIONS)
async def test_the_sdk_over_http(sdk: Path, mode: str) -> None:
    async with served(LocalBoard("ada", now=Clock())) as url:
        check(await run(sdk, mode, "http", url, TOKEN), mode, tells=mode != "legacy")
