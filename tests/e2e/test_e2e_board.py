"""The blackboard over real daemons: spreading, erasing, crashes in the middle of posts, and nodes without one."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from here import Site, joined, site

from tests.board_calls import call, post, texts, until_shown
from tests.daemons import OPEN_WAIT_SECONDS
from tests.netlab.nodes import Node

# 200 of them: MESH_LLM_TEST_KILLS=200 pytest tests/e2e/test_e2e_board.py -k killed
KILLS = int(os.environ.get("MESH_LLM_TEST_KILLS", "4"))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def mesh(here: Site, count: int) -> list[Node]:
    """That many nodes without a model, all linked."""
    nodes = [here.node("n0", "--node-name", "n0", "--name", "ada")]
    for number in range(1, count):
        nodes.append(here.node(f"n{number}", "--node-name", f"n{number}", "--name", "ben", join=nodes[0]))
        nodes[-1].until(joined, "its mesh")
    return nodes


def in_files(home: Path, text: str) -> list[str]:
    """The files of the board's store that have that text."""
    return [path.name for path in home.glob("board.db*") if text.encode() in path.read_bytes()]


def test_retracted_text_is_in_no_file_of_any_node(here: Site) -> None:
    nodes = mesh(here, 5)
    secret, stays = "the-name-of-the-customer", "what everybody may know"
    ident = post(nodes[1], f"FINDING: {secret} is affected")
    post(nodes[1], stays)
    for node in nodes:
        until_shown(node, stays)
    call(nodes[1], "retract", {"post": ident})
    for node in nodes:
        until_shown(node, f"FINDING: {secret} is affected", gone=True)
    end = time.monotonic() + 10.0
    homes = [node.home for node in nodes]
    while (left := [in_files(home, secret) for home in homes]) != [[]] * 5:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert all(in_files(home, stays) for home in homes)


def test_killed_while_posting_loses_nothing_acknowledged_and_uses_no_number_twice(here: Site) -> None:
    first = here.node("first", "--node-name", "first")
    rng = random.Random(7)
    acknowledged: list[str] = []
    second = here.node("second", "--node-name", "second", join=first)
    second.until(joined, "its mesh")
    assert second.stop() == 0
    for round_number in range(KILLS):
        second = here.node("second", "--node-name", "second")

        def keep_posting(node: Node = second, run: int = round_number) -> None:
            for number in range(5):
                try:
                    text = f"post {run}.{number}"
                    post(node, text)
                    acknowledged.append(text)
                except (OSError, ValueError):
                    return

        writer = threading.Thread(target=keep_posting, daemon=True)
        writer.start()
        writer.join(rng.random() * 0.3)
        second.process.kill()
        second.process.wait(OPEN_WAIT_SECONDS)
        writer.join(OPEN_WAIT_SECONDS)
    second = here.node("second", "--node-name", "second")
    assert acknowledged
    for node in (second, first):
        for text in acknowledged:
            until_shown(node, text)
        assert call(node, "facts")["flagged"] == []  # a number that is used twice would flag its author


def test_claim_is_granted_to_one_and_known_to_all(here: Site) -> None:
    nodes = mesh(here, 3)
    granted = call(nodes[1], "claim", {"key": "issue-7", "room": "o/r", "op": "acquire", "seconds": 600, "name": "ben"})
    assert granted["granted"]
    until = granted["holder"]["until"]
    refused = call(nodes[2], "claim", {"key": "issue-7", "room": "o/r", "op": "acquire", "seconds": 600})
    assert not refused["granted"]
    assert (refused["holder"]["node"], refused["holder"]["until"]) == ("n1", until)
    assert call(nodes[1], "claim", {"key": "issue-7", "room": "o/r", "op": "release"})["granted"]
    end = time.monotonic() + OPEN_WAIT_SECONDS
    while call(nodes[2], "claims")["claims"]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_node_without_a_blackboard_says_so_and_hinders_no_other(here: Site) -> None:
    first = here.node("first")
    off = here.node("off", "--no-blackboard", join=first)
    client = here.node("client", "--client", "--blackboard", join=first)
    client.until(joined, "its mesh")
    post(first, "hello")
    until_shown(client, "hello")
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(off, "hello")
    with raised.value as error:
        assert error.code == 404
        assert "--no-blackboard" in json.load(error)["error"]["message"]


def test_board_in_memory_leaves_no_file_and_comes_back_from_the_others(here: Site) -> None:
    first = here.node("first")
    second = here.node("second", "--blackboard-memory", join=first)
    second.until(joined, "its mesh")
    post(second, "in memory")
    until_shown(first, "in memory")
    assert second.stop() == 0
    assert not list((here.folder / "second").glob("board.db*"))
    second = here.node("second", "--blackboard-memory")
    until_shown(second, "in memory")
    post(second, "after the restart")
    until_shown(first, "after the restart")
    assert call(first, "facts")["flagged"] == []


def test_secrets_are_replaced_alike_by_every_way_in(here: Site) -> None:
    """Command line, HTTP (the console's way), MCP on standard streams and MCP over HTTP."""
    node = here.node("node")
    given = "deploy with ghp_" + "x9Kq" * 9 + " as root@10.1.2.3, mail ada@corp.dev, see https://bob:hunter22@host/x"
    ports = ["--port", node.console_url.rpartition(":")[2]]
    done = here.run("node", "blackboard", "--room", "cli", *ports, given)
    assert done.returncode == 0, done.stderr
    assert "github-token" in done.stdout + done.stderr
    post(node, given, room="http")
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "blackboard_post", "arguments": {"text": given}},
    }
    opened = {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
    }
    lines = "".join(json.dumps(each) + "\n" for each in (opened, message))
    done = here.run("node", "blackboard", "--mcp", "--room", "stdio", *ports, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout.splitlines()[-1])["result"].get("isError"), done.stdout
    headers = {**node.owner, "content-type": "application/json", "accept": "application/json, text/event-stream"}
    request = urllib.request.Request(f"{node.console_url}/mcp", json.dumps(message).encode(), headers)
    with urllib.request.urlopen(request, timeout=OPEN_WAIT_SECONDS) as answer:
        assert not json.load(answer)["result"].get("isError")
    found = texts(node)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert not any(secret in found[0] for secret in ("ghp_", "hunter22", "ada@corp.dev", "10.1.2.3"))
