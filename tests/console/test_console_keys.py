"""The chat by its keys, and what it says when there is nobody to answer: a node without an engine, a speaker behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Visitor
from tests.console.speaker import OPEN_WAIT_SECONDS, Speaker, speaking
from tests.daemons import Daemon, daemon


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Daemon, Speaker]]:
    """A node that passes everything on to a speaker."""
    with ExitStack() as stack:
        speaker = stack.enter_context(speaking(Speaker("speaker")))
        yield stack.enter_context(daemon(tmp_path / "home", "--backend", speaker.url)), speaker


@pytest.fixture
def chat(node: tuple[Daemon, Speaker], visitor: Visitor) -> Page:
    """The chat, with the speaker."""
    page = visitor.open(f"{node[0].console_url}/#/chat")
    expect(page.get_by_role("combobox", name="Model")).to_have_value("speaker")
    return page


def ask(page: Page, text: str) -> None:
    """Say something."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer(page: Page) -> Any:
    """What was said last, once it is there whole."""
    expect(page.locator("li.answered:not(.growing) .how")).to_have_count(1)
    return page.locator("li.answered")


def test_escape_stops_an_answer_wherever_the_focus_is(chat: Page, node: tuple[Daemon, Speaker]) -> None:
    speaker = node[1]
    speaker.says = "So far so good"
    for away in (False, True):
        speaker.gave_up.clear()
        speaker.goes_on.clear()
        ask(chat, "Go on")
        expect(chat.locator("li.answered").last.locator(".prose")).to_have_text("So far so good")
        if away:
            chat.evaluate("document.activeElement.blur()")
        chat.keyboard.press("Escape")
        assert speaker.gave_up.wait(OPEN_WAIT_SECONDS)
        expect(chat.locator("li.answered").last).to_contain_text("Stopped.")


def test_escape_in_the_box_of_an_edit_is_about_that_box(chat: Page, node: tuple[Daemon, Speaker]) -> None:
    speaker = node[1]
    speaker.says = "So far so good"
    speaker.goes_on.clear()
    ask(chat, "Go on")
    expect(chat.locator(".prose")).to_have_text("So far so good")
    chat.locator("li.said").hover()
    chat.get_by_role("button", name="Edit and ask again").click()
    expect(chat.get_by_label("Your message")).to_be_focused()
    chat.keyboard.press("Escape")
    expect(chat.get_by_label("Your message")).to_have_count(0)
    speaker.goes_on.set()
    expect(answer(chat)).not_to_contain_text("Stopped.")
    assert not speaker.gave_up.is_set()


def test_the_box_of_an_edit_takes_keys_as_the_composer_does(chat: Page, node: tuple[Daemon, Speaker]) -> None:
    speaker = node[1]
    speaker.says = "One."
    ask(chat, "First")
    answer(chat)
    chat.locator("li.said").hover()
    chat.get_by_role("button", name="Edit and ask again").click()
    chat.get_by_label("Your message").fill("Second")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("line")
    speaker.says = "Two."
    chat.keyboard.press("Enter")
    expect(chat.locator(".prose")).to_have_text("Two.")
    answer(chat)
    assert speaker.asked[-1]["messages"] == [{"role": "user", "content": "Second\nline"}]


def test_a_node_that_has_gone_is_told_with_what_to_do(
    chat: Page, visitor: Visitor, node: tuple[Daemon, Speaker]
) -> None:
    visitor.allow("ERR_")
    node[0].stop()
    ask(chat, "Is anybody there?")
    expect(chat.locator("li.answered").get_by_role("alert")).to_contain_text("cannot be reached")
    expect(chat.locator("li.answered").get_by_role("alert")).to_contain_text('"mesh-llm status" says whether it runs')
