"""Machines of a home are switched off and on: what the others say meanwhile, to their owner and to programs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from here import Site, joined, serves, site

from tests.netlab.nodes import Node, Status


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """This machine, for nodes of a test."""
    with site(tmp_path) as made:
        yield made


def refusal(node: Node, model: str) -> tuple[int, str, str | None]:
    """Status, message and Retry-After of a request that is refused."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    url, headers = f"{node.base_url}/chat/completions", {"content-type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers))
    with raised.value as error:
        return error.code, json.load(error)["error"]["message"], error.headers["retry-after"]


def alone_for_now(status: Status) -> bool:
    """Whether all other members are away, and nothing else is wrong."""
    return status["mesh"] is not None and status["mesh"]["phase"] == "alone for now"


def away(status: Status) -> list[tuple[str, list[str]]]:
    """Names and models of the members that are away."""
    return [(member["name"], member["models"]) for member in status["mesh"]["away"]]


def test_node_whose_partner_is_off_is_alone_for_now_and_names_it(here: Site) -> None:
    chat = here.model("chat", "attic")
    words = ("--backend", chat.url, "--node-name", "attic")
    attic = here.node("attic", *words)
    cellar = here.node("cellar", "--node-name", "cellar", "--backend", here.model("coder", "cellar").url, join=attic)
    attic.until(serves("coder"), "the partner's model")
    cellar.until(joined, "its mesh")
    assert cellar.stop() == 0
    status = attic.until(lambda s: alone_for_now(s) and s["mesh"]["away"], "being alone")
    assert away(status) == [("cellar", ["coder"])]
    assert attic.stop() == 0

    attic = here.node("attic", *words)
    status = attic.until(alone_for_now, "being alone after a restart")
    assert away(status) == [("cellar", ["coder"])]
    assert status["mesh"]["away"][0]["seen_seconds"] < 120
    shown = here.run("attic", "status", environment={"COLUMNS": "160"}).stdout
    assert "alone for now: cellar last seen" in shown
    assert "failed" not in shown
    code, message, retry = refusal(attic, "gpt-4o")
    assert (code, retry) == (404, None)
    assert "chat" in message
    assert "cellar (last seen" in message
    code, message, retry = refusal(attic, "coder")
    assert (code, retry is not None) == (503, True), "it was served a moment ago"
    assert "cellar" in message

    cellar = here.node("cellar", "--node-name", "cellar")
    status = attic.until(joined, "the partner")
    assert status["mesh"]["away"] == []


def test_model_of_a_host_that_was_killed_is_a_503_that_names_the_host(here: Site) -> None:
    attic = here.node("attic", "--node-name", "attic", "--backend", here.model("chat", "attic").url)
    desk = here.node("desk", "--node-name", "desk", join=attic)
    laptop = here.node("laptop", "--client", "--node-name", "laptop", join=desk)
    for one in (desk, laptop):
        one.until(serves("chat"), "the host's model")
    attic.kill()
    for one in (desk, laptop):
        one.until(lambda s: ("attic", ["chat"]) in away(s), "the loss of the host")
        code, message, retry = refusal(one, "chat")
        assert (code, retry is not None) == (503, True)
        assert "attic was last seen" in message
        code, message, _ = refusal(one, "another")
        assert code == 404
        assert "attic (last seen" in message


def test_client_whose_host_is_off_is_alone_for_now_and_answers_soon(here: Site) -> None:
    words = ("--node-name", "attic", "--backend", here.model("chat", "attic").url)
    attic = here.node("attic", *words)
    laptop = here.node("laptop", "--client", "--node-name", "laptop", join=attic)
    laptop.until(serves("chat"), "the host's model")
    attic.kill()
    began = time.monotonic()
    code, message, retry = refusal(laptop, "chat")  # sent to a host that is dead, which nobody knows yet
    assert (code, retry is not None) == (503, True)
    assert "attic was last seen" in message
    assert time.monotonic() - began < 20.0
    laptop.until(alone_for_now, "being alone")
    assert laptop.stop() == 0
    assert "no link to attic (" in (here.folder / "laptop" / "logs" / "daemon.log").read_text()

    laptop = here.node("laptop", "--client")
    code, message, _ = refusal(laptop, "gpt-4o")
    assert (code, "attic (last seen" in message) == (404, True)
    assert refusal(laptop, "chat")[0] == 503
    status = laptop.until(alone_for_now, "being alone after a restart")
    assert away(status) == [("attic", ["chat"])]
    assert "alone for now: attic last seen" in here.run("laptop", "status", environment={"COLUMNS": "160"}).stdout
    here.node("attic", *words)
    laptop.until(serves("chat"), "the host's model")


def test_clients_are_listed_and_a_node_that_became_one_has_not_left(here: Site) -> None:
    attic = here.node("attic", "--node-name", "attic", "--backend", here.model("chat", "attic").url)
    desk = here.node("desk", "--node-name", "desk", join=attic)
    attic.until(joined, "a second node")
    node = desk.until(joined, "its mesh")["mesh"]["node"]
    assert desk.stop() == 0
    attic.until(lambda s: away(s) == [("desk", [])], "its end")
    desk = here.node("desk", "--node-name", "desk", "--client")

    def clients(status: Status) -> list[tuple[Any, Any]]:
        return [(client["id"], client["name"]) for client in status["mesh"]["client_list"]]

    status = attic.until(lambda s: clients(s) == [(node, "desk")], "the client")
    assert status["mesh"]["clients"] == 1
    assert [peer["id"] for peer in status["mesh"]["peers"]] == [], "what it was before is over"
    assert status["mesh"]["away"] == []
    desk.until(serves("chat"), "the mesh's model")
    assert "desk" in here.run("attic", "status", environment={"COLUMNS": "160"}).stdout
    attic.wait_for(lambda line: line["event"] == "client" and line["name"] == "desk", "a line about the client")
