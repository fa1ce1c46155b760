"""The blackboard of real daemons: posts, claims and retractions over the mesh, and over a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from here import Site, joined, site

from tests.board_calls import call, texts
from tests.netlab.nodes import Node

WAIT_SECONDS = 60.0


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds, and return what it is."""
    end = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, f"timed out waiting for {what}"
        time.sleep(0.05)
    return found


def is_open(node: Node) -> bool:
    return bool(call(node, "facts")["enabled"])


def raw_bytes(node: Node) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(node.home.glob("board.db*")))


@pytest.mark.slow
def test_posts_claims_and_retractions_reach_the_other_node_and_survive_a_kill(here: Site) -> None:
    backend = here.model("m", "alpha")
    one = here.node("one", "--backend", backend.url, "--name", "ann")
    two = here.node("two", "--client", "--name", "bob", join=one)
    two.until(joined, "the join")
    until(lambda: is_open(one) and is_open(two), "the boards")

    first = call(one, "post", {"text": "QUESTION: which port? @bob", "room": "owner/name"})["post"]
    until(lambda: texts(two) == [first["text"]], "the post")
    told = call(two, "notice", {"name": "", "program": "", "cursor": "s"})
    assert (told["count"], told["questions"]) == (1, 1)
    reply = call(two, "post", {"text": "9337", "reply_to": first["id"][:8]})["post"]
    assert (reply["room"], reply["thread"], reply["name"]) == ("owner/name", first["id"], "bob")
    page = call(one, "feed", after=call(one, "feed", limit=1)["cursor"], wait_seconds=5)
    until(lambda: texts(one)[-1:] == ["9337"], "the reply")
    assert page["cursor"]

    # Both claim at the same moment: one gets it, and both say who.
    with ThreadPoolExecutor(2) as pool:
        claims = list(pool.map(lambda node: call(node, "claim", {"key": "issue-1"}), (one, two)))
    assert sorted(claim["granted"] for claim in claims) == [False, True]
    assert claims[0]["holder"]["id"] == claims[1]["holder"]["id"]
    until(lambda: call(one, "claims") and call(one, "claims")["claims"][0]["id"] == claims[0]["holder"]["id"], "it")

    secret = call(two, "post", {"text": "an embarrassing remark"})["post"]
    until(lambda: "an embarrassing remark" in texts(one), "the remark")
    begin = time.monotonic()
    assert call(two, "retract", {"post": secret["id"]})["post"]["retracted"]
    until(lambda: b"embarrassing" not in raw_bytes(one) + raw_bytes(two), "the end of the remark")
    assert time.monotonic() - begin < 30
    assert b"which port" in raw_bytes(one)

    # What was acknowledged is there after a kill, and what was missed meanwhile comes.
    call(one, "post", {"text": "before the kill"})
    one.kill()
    call(two, "post", {"text": "during the kill"})
    again = here.node("one", "--backend", backend.url, "--name", "ann")
    until(lambda: is_open(again), "the board")
    assert "before the kill" in texts(again)
    until(lambda: "during the kill" in texts(again), "what was missed")
    call(again, "post", {"text": "after the kill"})
    until(lambda: texts(two)[-1] == "after the kill", "a post in the same numbering")
    assert call(two, "facts")["flagged"] == []
    assert texts(two) == texts(again)
