"""The chat by its keys, and what it says when there is nobody to answer: a node without an engine, a backend behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Visitor
from tests.console.scripted_backend import OPEN_WAIT_SECONDS, ScriptedBackend, running_backend
from tests.daemons import Daemon, daemon


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Daemon, ScriptedBackend]]:
    """A node that passes everything on to a backend."""
    with ExitStack() as stack:
        backend = stack.enter_context(running_backend(ScriptedBackend("scripted")))
        yield stack.enter_context(daemon(tmp_path / "home", "--backend", backend.url)), backend


@pytest.fixture
def chat(node: tuple[Daemon, ScriptedBackend], visitor: Visitor) -> Page:
    """The chat, with the backend."""
    page = visitor.open(f"{node[0].console_url}/#/chat", node[0].token)
    expect(page.get_by_role("combobox", name="Model")).to_have_value("scripted")
    return page


def ask(page: Page, text: str) -> None:
    """Send a message."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer(page: Page) -> Any:
    """The only answer, when it is complete."""
    expect(page.locator("li.assistant-message:not(.streaming) .statistics")).to_have_count(1)
    return page.locator("li.assistant-message")


def test_escape_stops_an_answer_with_any_focus(chat: Page, node: tuple[Daemon, ScriptedBackend]) -> None:
    backend = node[1]
    backend.text = "So far so good"
    for away in (False, True):
        backend.disconnected.clear()
        backend.may_finish.clear()
        ask(chat, "Go on")
        expect(chat.locator("li.assistant-message").last.locator(".prose")).to_have_text("So far so good")
        if away:
            chat.evaluate("document.activeElement.blur()")
        chat.keyboard.press("Escape")
        assert backend.disconnected.wait(OPEN_WAIT_SECONDS)
        expect(chat.locator("li.assistant-message").last).to_contain_text("Stopped.")


def test_escape_in_the_editor_closes_only_the_editor(chat: Page, node: tuple[Daemon, ScriptedBackend]) -> None:
    backend = node[1]
    backend.text = "So far so good"
    backend.may_finish.clear()
    ask(chat, "Go on")
    expect(chat.locator(".prose")).to_have_text("So far so good")
    chat.locator("li.user-message").hover()
    chat.get_by_role("button", name="Edit and submit again").click()
    expect(chat.get_by_label("Your message")).to_be_focused()
    chat.keyboard.press("Escape")
    expect(chat.get_by_label("Your message")).to_have_count(0)
    backend.may_finish.set()
    expect(answer(chat)).not_to_contain_text("Stopped.")
    assert not backend.disconnected.is_set()


def test_editor_uses_the_keys_of_the_composer(chat: Page, node: tuple[Daemon, ScriptedBackend]) -> None:
    backend = node[1]
    backend.text = "One."
    ask(chat, "First")
    answer(chat)
    chat.locator("li.user-message").hover()
    chat.get_by_role("button", name="Edit and submit again").click()
    chat.get_by_label("Your message").fill("Second")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("line")
    backend.text = "Two."
    chat.keyboard.press("Enter")
    expect(chat.locator(".prose")).to_have_text("Two.")
    answer(chat)
    assert backend.received[-1]["messages"] == [{"role": "user", "content": "Second\nline"}]


def test_chat_error_for_a_stopped_node_names_the_next_step(
    chat: Page, visitor: Visitor, node: tuple[Daemon, ScriptedBackend]
) -> None:
    visitor.allow("ERR_")
    node[0].stop()
    ask(chat, "Hello?")
    expect(chat.locator("li.assistant-message").get_by_role("alert")).to_contain_text(
        "does not answer. Check that it runs"
    )
    expect(chat.locator("li.assistant-message").get_by_role("alert")).to_contain_text('"mesh-llm status"')


def test_owner_chats_without_typing_the_key_that_the_node_requires(visitor: Visitor, tmp_path: Path) -> None:
    visitor.allow("401")
    with ExitStack() as stack:
        backend = stack.enter_context(running_backend(ScriptedBackend("scripted")))
        node = stack.enter_context(daemon(tmp_path / "home", "--backend", backend.url, "--require-key"))
        backend.text = "Yes."
        page = visitor.open(f"{node.console_url}/#/chat", node.token)
        expect(page.get_by_role("combobox", name="Model")).to_have_value("scripted")
        ask(page, "Hello?")
        expect(answer(page).locator(".prose")).to_have_text("Yes.")
        page.get_by_role("link", name="Join").click()
        expect(page.get_by_role("region", name="curl: In a shell:")).to_contain_text("Bearer MESH_LLM_KEY")
