"""The Blackboard view on real nodes: what is written on the page of one is shown on the pages of the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import Visitor
from tests.console.test_console_commands import copied, shell
from tests.daemons import OPEN_WAIT_SECONDS, PROGRAM, Daemon, daemon
from tests.lan_address import lan_address

SECRET = "ghp_abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """Two nodes of a mesh: ada's attic, which other machines can read, and ben's barn."""
    folder = tmp_path_factory.mktemp("board")
    lan_address()
    with ExitStack() as stack:
        attic = stack.enter_context(
            daemon(folder / "attic", "--node-name", "attic", "--name", "ada", "--blackboard", "--listen-all")
        )
        environment = {**os.environ, "MESH_LLM_HOME": str(attic.home)}
        told = subprocess.run([str(PROGRAM), "invite"], env=environment, capture_output=True, text=True, check=True)
        (folder / "invite").write_text(told.stdout)
        joining = ("--join", f"@{folder / 'invite'}")
        barn = stack.enter_context(daemon(folder / "barn", "--node-name", "barn", "--name", "ben", *joining))
        barn.wait_for(lambda line: line["event"] == "mesh" and line["phase"] == "joined", "the mesh")
        yield attic, barn


def call(node: Daemon, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """An act of the node's owner."""
    headers = {**node.owner, "content-type": "application/json"}
    request = urllib.request.Request(f"{node.console_url}/api/blackboard/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=OPEN_WAIT_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def board(node: Daemon, visitor: Visitor) -> Page:
    page = visitor.open(f"{node.console_url}/#/blackboard", node.token)
    expect(page.get_by_role("textbox", name="New message")).to_be_visible()
    return page


def message(page: Page, text: str) -> Locator:
    return page.get_by_role("article").filter(has_text=text)


def test_people_on_two_nodes_talk_on_their_pages(nodes: tuple[Daemon, Daemon], visit: Callable[..., Visitor]) -> None:
    ada, ben = (board(node, visit()) for node in nodes)
    ada.get_by_role("textbox", name="New message").fill(f"QUESTION: who has the key {SECRET}?")
    expect(ada.locator(".preview")).to_contain_text("github-token")
    ada.get_by_label("Room", exact=True).fill("acme/engine")
    ada.get_by_label("To", exact=True).fill("ben")
    ada.get_by_role("button", name="Post", exact=True).click()
    asked = message(ben, "QUESTION: who has the key [github-token]?")
    expect(asked).to_contain_text("ada@attic")
    expect(asked).to_contain_text("acme/engine")
    expect(asked.get_by_role("button", name="Retract this message")).to_have_count(0)
    ben.get_by_label("Names me").check()
    expect(ben.get_by_role("article")).to_have_count(1)
    asked.get_by_role("button", name="Reply to ada@attic").click()
    expect(ben.get_by_role("textbox", name="Reply to ada@attic")).to_be_focused()
    ben.keyboard.type("The barn has it.")
    ben.keyboard.press("Control+Enter")
    expect(message(ben, "The barn has it.")).to_be_focused()
    fold = ada.get_by_role("button", name="1 reply · the last of ben@barn")
    fold.click()
    expect(message(ada, "The barn has it.")).to_contain_text("to ada")
    expect(ada.get_by_role("navigation", name="Rooms")).to_contain_text("acme/engine 2")
    for page in (ada, ben):
        assert SECRET not in page.content()


def test_retracted_message_leaves_the_page_of_another_node(
    nodes: tuple[Daemon, Daemon], visit: Callable[..., Visitor]
) -> None:
    ada, ben = (board(node, visit()) for node in nodes)
    ada.get_by_role("textbox", name="New message").fill("FINDING: said too early")
    ada.keyboard.press("Control+Enter")
    expect(message(ben, "said too early")).to_be_visible()
    own = message(ada, "said too early")
    place = ada.locator(f"[data-post='{own.get_attribute('data-post')}']")
    own.get_by_role("button", name="Retract this message").click()
    place.get_by_role("button", name="Retract it").click()
    expect(place).to_contain_text("This message was retracted")
    expect(message(ben, "said too early")).to_have_count(0)
    assert "said too early" not in ben.content()


def test_claims_of_another_node_are_shown_until_they_are_released(
    nodes: tuple[Daemon, Daemon], visit: Callable[..., Visitor]
) -> None:
    attic, barn = nodes
    ada = board(attic, visit())
    claim = {"key": "issue-16", "room": "acme/engine", "seconds": 900, "program": "codex"}
    assert call(barn, "claim", claim)["granted"]
    shown = ada.get_by_role("region", name="Who is on what").get_by_role("listitem")
    expect(shown).to_contain_text("issue-16")
    expect(shown).to_contain_text("ben@barn · codex · acme/engine")
    expect(shown.get_by_role("timer")).to_have_text(re.compile(r"^1[45]:\d\d left$"))
    assert call(barn, "claim", {**claim, "op": "release"})["granted"]
    expect(shown).to_have_count(0)


def test_search_finds_what_was_posted_elsewhere(nodes: tuple[Daemon, Daemon], visit: Callable[..., Visitor]) -> None:
    attic, barn = nodes
    call(barn, "post", {"text": "TIP: the aardvark needs a ladder", "room": "zoo"})
    page = board(attic, visit())
    page.get_by_label("Search the messages").fill("aardvark ladders")
    found = page.get_by_role("list", name="Found messages").get_by_role("article")
    expect(found).to_have_count(1)
    expect(found).to_contain_text("zoo")
    page.get_by_label("Search the messages").fill("")
    page.get_by_role("navigation", name="Rooms").get_by_role("link", name="zoo").click()
    expect(page.get_by_role("article")).to_have_count(1)


def test_other_device_reads_with_the_key_and_no_page_without_the_token(
    nodes: tuple[Daemon, Daemon], visit: Callable[..., Visitor]
) -> None:
    attic, barn = nodes
    call(barn, "post", {"text": "STATUS: read by phones"})
    key = (attic.home / "api-key").read_text().strip()
    phone = visit(viewport={"width": 375, "height": 720}, is_mobile=True, has_touch=True)
    page = phone.open(f"http://{lan_address()}:{urlsplit(attic.console_url).port}/#key={key}")
    page.get_by_role("link", name="Blackboard", exact=True).click()
    expect(message(page, "read by phones")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Reply|Retract|Post"))).to_have_count(0)
    call(barn, "post", {"text": "STATUS: at once"})
    expect(message(page, "at once")).to_be_visible()
    visitor = visit()
    page = visitor.open(f"{attic.console_url}/#/blackboard", "")
    expect(page.get_by_role("heading", name="The blackboard is shown to the node’s owner")).to_be_visible()
    assert not [url for url in visitor.requested if "/api/blackboard" in url]


def test_node_without_a_blackboard_says_why(tmp_path: Path, visitor: Visitor) -> None:
    with daemon(tmp_path, "--no-blackboard") as node:
        page = visitor.open(f"{node.console_url}/#/blackboard", node.token)
        expect(page.get_by_role("heading", name="The blackboard is off")).to_be_visible()
        expect(page.locator("main")).to_contain_text("This node was started with --no-blackboard.")


def test_commands_of_an_empty_board_run_as_they_stand(
    tmp_path: Path, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    (tmp_path / "person").mkdir()
    with daemon(tmp_path / "a home", "--blackboard", "--name", "ada") as node:
        page = board(node, visitor)
        blocks = page.get_by_role("region", name="No messages yet").locator("pre")
        expect(blocks).to_have_count(3)
        post, skill, mcp = (copied(block) for block in blocks.all())
        shell(skill, tmp_path)
        assert list((tmp_path / "person").rglob("SKILL.md"))
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        assert "blackboard" in shell(f"echo '{json.dumps(asked)}' | {mcp}", tmp_path)
        shell(post, tmp_path)
        expect(message(page, "STATUS: trying the blackboard")).to_contain_text("ada")
