"""`scripts/mcp_judges`: runs the MCP inspector's command line and the conformance suite against the MCP server.

Both are installed once outside the checkout, with fixed versions. Exit status 1 if one of them finds a fault that
`mcp_expected_failures.toml` does not name, or if that names one that is no fault any more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from meshllm import paths
from scripts.client_trials.trial import node_folder
from tests.local_board import LocalBoard
from tests.mcp_http_rig import TOKEN, served, with_token

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = Path(__file__).with_name("mcp_expected_failures.toml")
PACKAGES = ("@modelcontextprotocol/conformance@0.2.0-alpha.12", "@modelcontextprotocol/inspector@2.12.0")
ERAS = ("2026-07-28", "2025-11-25")
# Of an extension that this server does not declare.
NOT_JUDGED = "tasks-"
INSTALL_SECONDS, RUN_SECONDS = 600.0, 300.0
STDIO = (sys.executable, "-m", "tests.mcp_rig", "acme/rocket")
# What the inspector asks: the arguments, and what its answer must have.
QUESTIONS = (
    (("tools/list", "--strict"), "blackboard_claim"),
    (("tools/call", "--tool-name", "blackboard_post", "--tool-arg", "text=TIP: inspect"), "Posted"),
    (("tools/call", "--tool-name", "blackboard_feed"), "fenced by"),
    (("resources/list",), "board://claims"),
    (("resources/templates/list",), "board://thread/{id}"),
    (("resources/read", "--uri", "board://feed"), "fenced by"),
    (("prompts/list",), "hand-off"),
    (("prompts/get", "--prompt-name", "catch-up", "--prompt-args", "hours=2"), "Summarise"),
)


def installed() -> Path:
    """The folder of the judges. Raises SystemExit where they cannot be fetched."""
    name = "-".join(package.rpartition("@")[2] for package in PACKAGES)
    folder = paths.cache() / "mcp-judges" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "installed").exists():
            npm = node_folder().parent / "lib/node_modules/npm/bin/npm-cli.js"
            words = [str(node_folder() / "node"), str(npm), "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(
                [*words, "--prefix", str(folder), *PACKAGES],
                check=False,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
            )
            if done.returncode:
                raise SystemExit(f"the judges cannot be installed:\n{done.stderr[-2000:]}")
            (folder / "installed").touch()
    return folder


async def node(folder: Path, program: str, *words: str) -> tuple[int, str]:
    """Run one of the judges' programs; its exit status and output."""
    command = [str(node_folder() / "node"), str((folder / "node_modules" / ".bin" / program).resolve()), *words]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode("utf-8", "replace")


async def inspect(folder: Path, url: str, token: str) -> list[str]:
    """The faults that the inspector finds, over both transports."""
    faults = []
    http = ("--transport", "http", "--header", f"x-mesh-llm-token: {token}")
    for (method, *options), wanted in QUESTIONS:
        asked = ("--cli", "--method", method, *options)
        for how, words in (
            ("stdio", (*asked, "--cwd", str(ROOT), "--", *STDIO)),
            ("http", ("--cli", url, *http, *asked[1:])),
        ):
            status, said = await node(folder, "mcp-inspector", *words)
            if status or wanted not in said:
                faults.append(f"inspector, {how}, {method}: status {status}: {said[-600:]}")
    return faults


async def conform(folder: Path, url: str) -> tuple[list[str], int]:
    """The faults that the conformance suite finds and that are not expected, and how many checks passed."""
    expected = tomllib.loads(EXPECTED.read_text())
    faults, passed = [], 0
    for era in ERAS:
        with tempfile.TemporaryDirectory() as results:
            await node(folder, "conformance", "server", "--url", url, "--requirements", era, "--output-dir", results)
            found = dict(_scenarios(Path(results)))
        if not found:
            faults.append(f"conformance {era}: no scenario has run")
        for scenario, checks in found.items():
            failing = {check["id"] for check in checks if check["status"] == "FAILURE"}
            passed += sum(check["status"] == "SUCCESS" for check in checks)
            known = set(expected[era].get(scenario, ()))
            told = {check["id"]: str(check.get("errorMessage", ""))[:300] for check in checks}
            faults += [f"conformance {era}, {scenario}: {each}: {told[each]}" for each in sorted(failing - known)]
            faults += [
                f"conformance {era}, {scenario}: {each} does not fail any more" for each in sorted(known - failing)
            ]
    return faults, passed


def _scenarios(results: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The scenarios with their checks. Folders are called server-SCENARIO-TIME."""
    for path in results.glob("*/checks.json"):
        name = path.parent.name.removeprefix("server-")
        name = name[: name.rindex("T")].rsplit("-", 3)[0]
        if not name.startswith(NOT_JUDGED):
            yield name, json.loads(path.read_text())


@contextlib.asynccontextmanager
async def server(options: argparse.Namespace) -> AsyncIterator[tuple[str, str]]:
    """The URL of /mcp and the token for it."""
    if options.url:
        yield options.url, options.token
        return
    board = LocalBoard()
    async with served(board) as url:
        yield url, TOKEN


async def judge(options: argparse.Namespace) -> int:
    """Run both judges. Returns 1 if one finds a fault."""
    folder = installed()
    async with server(options) as (url, token), with_token(url, token) as open_url:
        faults, passed = await conform(folder, open_url)
        inspected = await inspect(folder, url, token)
    for fault in (*faults, *inspected):
        print(fault)
    print(
        f"conformance: {passed} checks passed, {len(faults)} unexpected; "
        f"inspector: {2 * len(QUESTIONS) - len(inspected)} of {2 * len(QUESTIONS)} questions answered"
    )
    return 1 if faults or inspected else 0


def main() -> int:
    """Parse the command line and judge."""
    parser = argparse.ArgumentParser(prog="scripts/mcp_judges", description=__doc__)
    parser.add_argument("--url", default="", help="/mcp of a running node, http://127.0.0.1:3131/mcp")
    parser.add_argument("--token", default="", help="the token of its run, from daemon.json in its home")
    return asyncio.run(judge(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
