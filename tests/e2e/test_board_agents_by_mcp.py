"""Two agents on two nodes of a mesh, by MCP: one asks the other by name, who waits, is told, and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from here import Site, joined, site

from tests.board_calls import post, until_shown
from tests.netlab.nodes import Node

ROOT = Path(__file__).resolve().parents[2]
ROOM = "acme/rocket"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


class Agent:
    """`mesh-llm blackboard --mcp` of a node's owner, with one request at a time."""

    def __init__(self, node: Node, program: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MESH_LLM_HOME": str(node.home)}
        command = [sys.executable, "-m", "meshllm.cli.program", "blackboard", "--mcp", "--room", ROOM]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._number = 0
        start = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": program, "version": "1"}}
        self.ask("initialize", start)

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result of a request."""
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        while (answer := json.loads(self._process.stdout.readline())).get("id") != self._number:
            pass
        result: dict[str, Any] = answer["result"]
        return result

    def call(self, tool: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
        """Text and facts of a tool's result, which is no error."""
        result = self.ask("tools/call", {"name": tool, "arguments": arguments})
        assert not result.get("isError"), result
        return result["content"][0]["text"], result["structuredContent"]

    def close(self) -> None:
        """End it as clients do."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(20) == 0
        self._process.stdout.close()


def feed_over_http(node: Node) -> str:
    """The text of the feed that `/mcp` of a node gives its owner."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "blackboard_feed", "arguments": {}}}
    headers = {**node.owner, "content-type": "application/json", "accept": "application/json"}
    request = urllib.request.Request(f"{node.console_url}/mcp?room={ROOM}", json.dumps(call).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as reply:
        return str(json.load(reply)["result"]["content"][0]["text"])


@pytest.mark.slow
def test_an_agent_on_another_node_is_told_and_answers(here: Site) -> None:
    first = here.node("n0", "--node-name", "n0", "--name", "ada")
    second = here.node("n1", "--node-name", "n1", "--name", "ben", join=first)
    second.until(joined, "its mesh")
    post(first, "NOTE: both are there")
    until_shown(second, "NOTE: both are there")
    ada, ben = Agent(first, "Claude Code"), Agent(second, "codex")
    with ThreadPoolExecutor(1) as pool:
        ben.call("blackboard_feed", to_me=True)
        waiting = pool.submit(ben.call, "blackboard_feed", to_me=True, wait_seconds=50)
        _, asked = ada.call("blackboard_post", text="QUESTION: which port?", kind="question", to=["ben"])
        text, told = waiting.result(60)
    assert "ada@n0 (claude-code)" in text
    (message,) = told["messages"]
    assert (message["id"], message["room"], message["text"]) == (asked["id"], ROOM, "QUESTION: which port?")
    ben.call("blackboard_post", text="9337", reply_to=asked["id"][:10])
    text, told = ada.call("blackboard_feed", thread=asked["id"][:10], wait_seconds=50)
    assert [each["text"] for each in told["messages"]] == ["9337"]
    assert "ben@n1 (codex)" in text
    _, taken = ada.call("blackboard_claim", op="acquire", key="issue-1")
    assert taken["granted"]
    text, lost = ben.call("blackboard_claim", op="acquire", key="issue-1")
    assert not lost["granted"]
    assert "ada@n0" in text
    shown = feed_over_http(first)
    assert "which port?" in shown
    assert "9337" in shown
    ada.close()
    ben.close()
