"""Several tabs of the page in one browser: they show the same chats, and lose nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.console.chatting import ChatRig, answers, ask, bubbles, chat_rig, edit, listed, questions, ready, send
from tests.console.conftest import Visitor


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatRig]:
    """A node with a scripted backend."""
    with chat_rig(tmp_path_factory.mktemp("tabs")) as made:
        yield made


@pytest.fixture
def tabs(rig: ChatRig, visitor: Visitor) -> Callable[[], Page]:
    """Opens another tab of one browser, at the chat or at the address of a page."""
    rig.backend.reset()
    rig.backend.text = "Yes."
    visitor.open(rig.url, rig.node.token)
    unused = [visitor.page]

    def opened(like: Page | None = None) -> Page:
        page = unused.pop() if unused else visitor.context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: visitor._problems.append(f"exception: {error}"))
        page.goto(like.url if like is not None else rig.url)
        return ready(page)

    return opened


def asked(rig: ChatRig) -> list[list[str]]:
    """The contents of the messages of each request."""
    return [[message["content"] for message in body["messages"]] for body in rig.backend.received]


def test_turns_of_two_tabs_of_one_chat_are_all_kept(rig: ChatRig, tabs: Callable[..., Page]) -> None:
    one = tabs()
    ask(one, "first")
    two = tabs(one)
    expect(answers(two)).to_have_count(1)
    ask(two, "one-c")
    expect(questions(one)).to_have_count(2)
    ask(one, "one-d")
    expect(questions(two)).to_have_count(3)
    assert asked(rig)[-1] == ["first", "Yes.", "one-c", "Yes.", "one-d"]
    for page in (one, two):
        page.reload()
        expect(bubbles(page)).to_have_text(["first", "one-c", "one-d"])
        expect(answers(page)).to_have_count(3)


def test_question_that_a_tab_has_not_heard_of_is_kept(rig: ChatRig, tabs: Callable[..., Page]) -> None:
    one = tabs()
    ask(one, "first")
    two = tabs(one)
    # As of a tab whose messages are late: it does not hear of the other tab's question.
    two.evaluate("BroadcastChannel.prototype.postMessage = () => undefined")
    ask(two, "unheard")
    expect(questions(one)).to_have_count(1)
    ask(one, "later")
    assert asked(rig)[-1] == ["first", "Yes.", "unheard", "Yes.", "later"]
    expect(bubbles(one)).to_have_text(["first", "unheard", "later"])


def test_chat_made_in_one_tab_appears_in_the_list_of_the_other(tabs: Callable[..., Page]) -> None:
    one, two = tabs(), tabs()
    expect(listed(two)).to_have_count(0)
    ask(one, "made in one")
    expect(listed(two)).to_have_text(["made in one"])
    one.get_by_role("link", name="made in one").hover()
    one.get_by_role("button", name="Rename made in one").click()
    one.get_by_label("New name of made in one").fill("A better name")
    one.keyboard.press("Enter")
    expect(listed(two)).to_have_text(["A better name"])
    two.get_by_role("link", name="A better name").hover()
    two.get_by_role("button", name="Delete A better name").click()
    expect(listed(one)).to_have_count(0)
    expect(one.get_by_role("heading", name="Ask anything")).to_be_visible()
    two.get_by_role("button", name="Undo").click()
    expect(listed(one)).to_have_text(["A better name"])


def test_answer_of_one_tab_streams_into_the_other_and_is_stopped_there(rig: ChatRig, tabs: Callable[..., Page]) -> None:
    one = tabs()
    ask(one, "first")
    two = tabs(one)
    expect(answers(two)).to_have_count(1)
    rig.backend.text = "So far so good"
    rig.backend.may_finish.clear()
    send(one, "go on")
    expect(answers(two).last.locator(".prose")).to_have_text("So far so good")
    expect(answers(two).last).to_have_attribute("aria-busy", "true")
    # A tab that is opened meanwhile, too.
    three = tabs(one)
    expect(answers(three).last.locator(".prose")).to_have_text("So far so good")
    expect(three.get_by_role("button", name="Stop")).to_be_visible()
    two.get_by_role("button", name="Stop").click()
    assert rig.backend.disconnected.wait(60)
    for page in (one, two, three):
        expect(answers(page).last).to_contain_text("Stopped.")
        expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_answer_of_a_closed_tab_does_not_block_the_chat(rig: ChatRig, tabs: Callable[..., Page]) -> None:
    one = tabs()
    ask(one, "first")
    two = tabs(one)
    rig.backend.text = "Half an answer"
    rig.backend.may_finish.clear()
    send(one, "go on")
    expect(answers(two).last.locator(".prose")).to_have_text("Half an answer")
    one.goto("about:blank")
    rig.backend.may_finish.set()
    two.reload()
    expect(answers(two).last).to_contain_text("Stopped")
    rig.backend.text = "A whole one."
    ask(two, "and now?")
    expect(answers(two).last.locator(".prose")).to_have_text("A whole one.")


def test_reload_while_an_answer_streams_keeps_what_came(rig: ChatRig, tabs: Callable[..., Page]) -> None:
    one = tabs()
    rig.backend.text = "x" * 40
    rig.backend.may_finish.clear()
    send(one, "go on")
    expect(answers(one).locator(".prose")).to_have_text("x" * 40)
    one.wait_for_timeout(2500)  # longer than the interval of saves
    one.reload()
    rig.backend.may_finish.set()
    expect(answers(one).locator(".prose")).to_have_text("x" * 40)
    expect(answers(one)).to_contain_text("Stopped")


def test_versions_chosen_in_one_tab_are_shown_in_the_other(rig: ChatRig, tabs: Callable[..., Page]) -> None:
    one = tabs()
    ask(one, "first")
    two = tabs(one)
    edit(one, 0, "edited")
    expect(bubbles(two)).to_have_text(["edited"])
    two.get_by_role("button", name="Earlier version").first.click()
    for page in (one, two):
        expect(questions(page).first).to_contain_text("first")


def test_chats_of_the_first_version_of_the_database_are_kept(rig: ChatRig, visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page = visitor.page
    page.goto(f"{rig.node.console_url}/assets/licences.txt")
    page.evaluate(
        """() => new Promise((resolve, reject) => {
            const request = indexedDB.open('mesh-llm', 1)
            request.onupgradeneeded = () => request.result.createObjectStore('conversations', { keyPath: 'id' })
            request.onsuccess = () => {
                const made = request.result
                const transaction = made.transaction('conversations', 'readwrite')
                transaction.objectStore('conversations').put({
                    id: 'old', title: 'An old chat', model: 'scripted', system: 'Be brief.', changed: 1000,
                    messages: [
                        { id: 'a', role: 'user', text: 'Old question' },
                        { id: 'b', role: 'assistant', text: 'Old answer', model: 'scripted' },
                    ],
                })
                transaction.oncomplete = () => { made.close(); resolve() }
                transaction.onerror = reject
            }
        })"""
    )
    page = ready(visitor.open(rig.url, rig.node.token))
    page.get_by_role("link", name="An old chat").click()
    expect(answers(page).locator(".prose")).to_have_text("Old answer")
    rig.backend.reset()
    rig.backend.text = "New."
    ask(page, "New question")
    assert asked(rig)[-1] == ["Be brief.", "Old question", "Old answer", "New question"]
