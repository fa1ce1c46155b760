"""A node that passes all requests on to a scripted backend, and what a visitor does in its chat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.console.scripted_backend import ScriptedBackend, running_backend
from tests.daemons import Daemon, daemon


@dataclass
class ChatRig:
    """A node and its backend."""

    node: Daemon
    backend: ScriptedBackend

    @property
    def url(self) -> str:
        """The chat."""
        return f"{self.node.console_url}/#/chat"


@contextmanager
def chat_rig(home: Path) -> Iterator[ChatRig]:
    """Run both."""
    with ExitStack() as stack:
        backend = stack.enter_context(running_backend(ScriptedBackend("scripted")))
        node = stack.enter_context(daemon(home, "--backend", backend.url, "--node-name", "workbench"))
        yield ChatRig(node, backend)


def ready(page: Page) -> Page:
    """Wait until the chat can be used."""
    expect(page.get_by_role("combobox", name="Model")).to_have_value("scripted")
    return page


def send(page: Page, text: str) -> None:
    """Send a message; the answer may still stream."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(questions(page).last).to_contain_text(text)


def ask(page: Page, text: str) -> Locator:
    """Send a message and wait for the answer."""
    send(page, text)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("li.streaming")).to_have_count(0)
    return answers(page).last


def questions(page: Page) -> Locator:
    """The shown questions."""
    return page.locator("li.user-message")


def bubbles(page: Page) -> Locator:
    """The texts of the shown questions."""
    return page.locator("li.user-message .bubble")


def answers(page: Page) -> Locator:
    """The shown answers."""
    return page.locator("li.assistant-message")


def listed(page: Page) -> Locator:
    """The links of the list of chats."""
    return page.get_by_role("navigation", name="Chats").get_by_role("listitem").get_by_role("link")


def settings(page: Page) -> None:
    """Open or close the settings of the chat."""
    page.get_by_role("button", name="Settings of this chat").click()


def edit(page: Page, question: int, text: str) -> None:
    """Edit a question and submit it."""
    questions(page).nth(question).hover()
    questions(page).nth(question).get_by_role("button", name="Edit and submit again").click()
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(questions(page).nth(question)).to_contain_text(text)
    expect(page.locator("li.streaming")).to_have_count(0)


def words(locator: Locator) -> str:
    """The text of an element, with single spaces."""
    return re.sub(r"\s+", " ", locator.inner_text()).strip()
