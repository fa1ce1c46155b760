"""What is done with whole chats: parameters, versions, search, rename, undo, export and import."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.console.chatting import ChatRig, answers, ask, bubbles, chat_rig, edit, listed, questions, ready, settings
from tests.console.conftest import Visitor, serious
from tests.console.overlap import overlapping

HOSTILE = """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>
[x](javascript:document.title='owned') ![y](https://example.org/track.png)"""
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

MESSAGE = {"id": "a1", "parent": None, "role": "user", "made": 1, "text": ""}

BOXES = """all => all.map((one) => {
    const { x, y, width, height } = one.getBoundingClientRect()
    return [x, y, width, height]
})"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatRig]:
    """A node with a scripted backend."""
    with chat_rig(tmp_path_factory.mktemp("files")) as made:
        yield made


@pytest.fixture
def chat(rig: ChatRig, visitor: Visitor) -> Page:
    """The chat."""
    rig.backend.reset()
    rig.backend.text = "Yes."
    return ready(visitor.open(rig.url, rig.node.token))


def downloaded(page: Page, name: str) -> tuple[str, str]:
    """The name and the text of the file that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")


def bring(page: Page, content: object) -> None:
    """Import a file with this content."""
    text = content if isinstance(content, str) else json.dumps(content)
    file = {"name": "chats.json", "mimeType": "application/json", "buffer": text.encode()}
    page.get_by_label("Import chats from a file").set_input_files(file)  # type: ignore[arg-type]


def export_of(*chats: dict[str, Any]) -> dict[str, Any]:
    """An export file with these chats."""
    return {"format": "mesh-llm chats", "version": 1, "chats": list(chats)}


def one_chat(number: int = 1, **more: object) -> dict[str, Any]:
    """A chat of an export file, with one question and its answer."""
    question = {"id": f"q{number}", "parent": None, "role": "user", "made": 1000, "text": f"Question {number}"}
    answer = {"id": f"a{number}", "parent": f"q{number}", "role": "assistant", "made": 1001, "text": "Answer"}
    chat = {"id": f"c{number}", "title": f"Chat {number}", "model": "scripted", "system": "", "parameters": {}}
    return {**chat, "changed": 1000, "leaf": f"a{number}", "messages": [question, answer], **more}


# -- parameters


def test_parameters_are_sent_and_shown_under_the_answer(rig: ChatRig, chat: Page) -> None:
    settings(chat)
    for label, text in (("Temperature", "0.3"), ("Top-p", "0,9"), ("Max tokens", "64"), ("Seed", "42")):
        chat.get_by_label(label, exact=True).fill(text)
    chat.get_by_label("System prompt of this chat").fill("Be brief.")
    answer = ask(chat, "Are you?")
    sent = rig.backend.received[-1]
    assert {name: sent[name] for name in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.3,
        "top_p": 0.9,
        "max_tokens": 64,
        "seed": 42,
    }
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    for words in ("temperature 0.3", "top-p 0.9", "max tokens 64", "seed 42", "system prompt"):
        expect(answer.locator(".statistics")).to_contain_text(words)
    # They belong to the chat, not to the page.
    chat.get_by_role("link", name="New chat").click()
    expect(chat.get_by_label("Temperature", exact=True)).to_have_value("")
    answer = ask(chat, "And now?")
    assert not {"temperature", "top_p", "max_tokens", "seed"} & rig.backend.received[-1].keys()
    expect(answer.locator(".statistics")).not_to_contain_text("temperature")
    listed(chat).filter(has_text="Are you?").click()
    expect(chat.get_by_label("Temperature", exact=True)).to_have_value("0.3")
    chat.reload()
    settings(ready(chat))
    expect(chat.get_by_label("Seed")).to_have_value("42")


def test_invalid_parameters_are_named_and_not_sent(rig: ChatRig, chat: Page) -> None:
    settings(chat)
    for label, wrong in (
        ("Temperature", "2.1"),
        ("Top-p", "-1"),
        ("Max tokens", "0"),
        ("Seed", "1.5"),
        ("Temperature", "1e1"),
        ("Seed", "99999999999"),
    ):
        chat.get_by_label(label, exact=True).fill(wrong)
        expect(chat.get_by_label(label, exact=True)).to_have_attribute("aria-invalid", "true")
        expect(chat.get_by_role("alert").filter(has_text="Not sent").first).to_be_visible()
    ask(chat, "Hello")
    assert not {"temperature", "top_p", "max_tokens", "seed"} & rig.backend.received[-1].keys()


def test_defaults_of_the_browser_are_those_of_new_chats(rig: ChatRig, chat: Page) -> None:
    settings(chat)
    chat.get_by_label("Temperature", exact=True).fill("0.1")
    chat.get_by_label("System prompt of this chat").fill("Rhyme.")
    chat.get_by_role("button", name="Use for new chats").click()
    expect(chat.get_by_text("New chats in this browser begin with these settings.")).to_be_visible()
    chat.reload()
    ask(ready(chat), "Hello")
    assert rig.backend.received[-1]["temperature"] == 0.1
    assert rig.backend.received[-1]["messages"][0]["content"] == "Rhyme."
    settings(chat)
    chat.get_by_label("Temperature", exact=True).fill("1")
    chat.get_by_role("button", name="Reset to the defaults").click()
    expect(chat.get_by_label("Temperature", exact=True)).to_have_value("0.1")
    ask(chat, "Again")
    assert rig.backend.received[-1]["temperature"] == 0.1


# -- versions


def test_edit_of_an_early_question_keeps_the_later_turns(rig: ChatRig, chat: Page) -> None:
    ask(chat, "first")
    ask(chat, "second")
    rig.backend.text = "Other."
    edit(chat, 0, "first, edited")
    expect(bubbles(chat)).to_have_text(["first, edited"])
    assert [message["content"] for message in rig.backend.received[-1]["messages"]] == ["first, edited"]
    expect(questions(chat).first).to_contain_text("2 of 2")
    questions(chat).first.get_by_role("button", name="Earlier version").click()
    expect(bubbles(chat)).to_have_text(["first", "second"])
    expect(answers(chat).locator(".prose")).to_have_text(["Yes.", "Yes."])
    chat.reload()
    expect(bubbles(chat)).to_have_text(["first", "second"])
    ask(chat, "third")
    assert [m["content"] for m in rig.backend.received[-1]["messages"]] == ["first", "Yes.", "second", "Yes.", "third"]


def test_regenerated_answer_keeps_the_earlier_one(rig: ChatRig, chat: Page) -> None:
    ask(chat, "first")
    rig.backend.text = "Another."
    chat.get_by_role("button", name="Regenerate").click()
    expect(answers(chat).locator(".prose")).to_have_text("Another.")
    answers(chat).get_by_role("button", name="Earlier version").click()
    expect(answers(chat).locator(".prose")).to_have_text("Yes.")
    expect(answers(chat)).to_contain_text("1 of 2")


# -- the list


def test_deleted_chat_is_restored_by_undo_and_else_gone(rig: ChatRig, chat: Page) -> None:
    ask(chat, "Keep me")
    for wanted in ("Undo", ""):
        listed(chat).filter(has_text="Keep me").hover()
        chat.get_by_role("button", name="Delete Keep me").click()
        expect(listed(chat)).to_have_count(0)
        expect(chat.get_by_role("heading", name="Ask anything")).to_be_visible()
        if wanted:
            chat.get_by_role("button", name=wanted).click()
            expect(answers(chat).locator(".prose")).to_have_text("Yes.")
            expect(listed(chat)).to_have_text(["Keep me"])
    chat.reload()
    expect(ready(chat).get_by_role("heading", name="Ask anything")).to_be_visible()
    expect(listed(chat)).to_have_count(0)
    # Some time later nothing of it is stored.
    chat.evaluate("Date.now = ((now) => () => now() + 600000)(Date.now)")
    chat.add_init_script("Date.now = ((now) => () => now() + 600000)(Date.now)")
    chat.reload()
    ready(chat)
    count = """() => new Promise((resolve) => {
        const request = indexedDB.open('mesh-llm')
        request.onsuccess = () => {
            const stored = request.result.transaction('messages').objectStore('messages').count()
            stored.onsuccess = () => { request.result.close(); resolve(stored.result) }
        }
    })"""
    chat.wait_for_function(f"async () => (await ({count})()) === 0")


def test_search_finds_titles_and_texts(rig: ChatRig, chat: Page) -> None:
    bring(chat, export_of(*[one_chat(number) for number in range(1, 9)]))
    expect(listed(chat)).to_have_count(8)
    search = chat.get_by_label("Search the chats")
    search.fill("question 7")
    expect(listed(chat)).to_have_text(["Chat 7"])
    search.fill("CHAT 3")
    expect(listed(chat)).to_have_text(["Chat 3"])
    search.fill("nowhere")
    expect(chat.get_by_text("No chat contains this.")).to_be_visible()
    search.fill("")
    expect(listed(chat)).to_have_count(8)


def test_rename_keeps_the_title_with_escape(chat: Page) -> None:
    ask(chat, "A question")
    for keys, name in (("Escape", "A question"), ("Enter", "Renamed")):
        listed(chat).first.hover()
        chat.get_by_role("button", name="Rename A question").click()
        chat.get_by_label("New name of A question").fill("Renamed")
        chat.keyboard.press(keys)
        expect(listed(chat)).to_have_text([name])
    ask(chat, "More")
    chat.reload()
    expect(listed(chat)).to_have_text(["Renamed"])


# -- export and import


def test_export_of_all_chats_is_imported_elsewhere(rig: ChatRig, chat: Page, visit: Callable[..., Visitor]) -> None:
    rig.backend.text = "Über $x^2$ and 日本語."
    ask(chat, "first")
    edit(chat, 0, "first, edited")
    chat.get_by_role("link", name="New chat").click()
    ask(chat, "another chat")
    name, text = downloaded(chat, "Export all")
    assert name.startswith("mesh-llm-chats-")
    assert [one["title"] for one in json.loads(text)["chats"]] == ["another chat", "first"]
    # The same browser has them already.
    bring(chat, text)
    expect(chat.get_by_role("status").filter(has_text="Imported 0 chats. 2 chats were here already.")).to_be_visible()
    expect(listed(chat)).to_have_count(2)
    elsewhere = ready(visit().open(rig.url, rig.node.token))
    bring(elsewhere, text)
    expect(listed(elsewhere)).to_have_text(["another chat", "first"])
    elsewhere.get_by_role("link", name="first", exact=True).click()
    expect(bubbles(elsewhere)).to_have_text(["first, edited"])
    expect(questions(elsewhere).first).to_contain_text("2 of 2")
    expect(answers(elsewhere)).to_contain_text("日本語")


def test_export_of_one_chat_as_json_and_markdown(rig: ChatRig, chat: Page) -> None:
    rig.backend.text = "**Bold** answer."
    ask(chat, "What/is: this?")
    chat.get_by_role("button", name="Export this chat").click()
    name, text = downloaded(chat, "Save as JSON")
    assert name == "What-is-this.json"
    assert [message["text"] for message in json.loads(text)["chats"][0]["messages"]] == [
        "What/is: this?",
        "**Bold** answer.",
    ]
    name, text = downloaded(chat, "Save as Markdown")
    assert name == "What-is-this.md"
    assert text.startswith("# What/is: this?\n\n## You\n\nWhat/is: this?\n\n## scripted (")
    assert text.endswith("\n\n**Bold** answer.\n")


def test_import_of_a_changed_chat_keeps_both(chat: Page) -> None:
    bring(chat, export_of(one_chat()))
    expect(listed(chat)).to_have_text(["Chat 1"])
    changed = one_chat(title="Changed")
    changed["messages"][1]["text"] = "Another answer"
    bring(chat, export_of(changed))
    expect(listed(chat)).to_have_count(2)
    for title, text in (("Chat 1", "Answer"), ("Changed", "Another answer")):
        chat.get_by_role("link", name=title).click()
        expect(answers(chat).locator(".prose")).to_have_text(text)


def test_import_runs_no_html_and_loads_nothing(rig: ChatRig, chat: Page) -> None:
    hostile = one_chat(
        title=HOSTILE, model=HOSTILE, system=HOSTILE, parameters={"temperature": 0.5, "__proto__": {"a": 1}}
    )
    for message in hostile["messages"]:
        message |= {"text": HOSTILE, "thinking": HOSTILE, "model": HOSTILE, "host": HOSTILE, "error": HOSTILE}
        message |= {"ended": "error", "images": [PIXEL], "dangerouslySetInnerHTML": {"__html": HOSTILE}}
    bring(chat, export_of(hostile))
    listed(chat).first.click()
    expect(answers(chat)).to_have_count(1)
    answers(chat).locator("summary").click()
    settings(chat)
    expect(chat.get_by_label("System prompt of this chat")).to_have_value(HOSTILE)
    expect(chat).not_to_have_title("owned")
    for forbidden in ("script", "iframe", "img:not(.images img)", "[onerror]", "a[href^='javascript']"):
        expect(chat.locator(f"main {forbidden}")).to_have_count(0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("not json", "it is not valid JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "it is nested too deeply"),
        ({"format": "other"}, "Choose a JSON file that this page has exported"),
        (export_of() | {"version": 2}, "exported by a newer version"),
        (export_of(one_chat(), one_chat()), "an id that occurs twice"),
        (export_of(one_chat(id="../x")), "invalid id"),
        (export_of(one_chat(leaf="nowhere")), "no last message"),
        (export_of(one_chat(title=7)), "invalid text"),
        (export_of(one_chat(changed="now")), "invalid number"),
        (export_of(one_chat(messages=[MESSAGE | {"parent": "a1"}])), "in a circle"),
        (export_of(one_chat(messages=[MESSAGE | {"parent": "b"}])), "lacks a message"),
        (export_of(one_chat(messages=[MESSAGE | {"role": "system"}])), "unknown role"),
        (export_of(one_chat(messages=[MESSAGE | {"images": ["https://example.org/x"]}])), "not a PNG"),
    ],
)  # fmt: skip
def test_invalid_file_is_refused_as_a_whole(content: object, problem: str, chat: Page) -> None:
    if isinstance(content, dict) and content.get("chats") and problem != "an id that occurs twice":
        content = {**content, "chats": [one_chat(77), *content["chats"]]}
    bring(chat, content)
    expect(chat.get_by_role("alert")).to_contain_text(problem)
    expect(listed(chat)).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_list_settings_and_versions_pass_axe_and_fit_a_phone(
    rig: ChatRig, visit: Callable[..., Visitor], axe: str, scheme: str
) -> None:
    rig.backend.reset()
    rig.backend.text = "Yes."
    visitor = visit(
        color_scheme=scheme, bypass_csp=True, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    )
    page = ready(visitor.open(rig.url, rig.node.token))
    bring(
        page, export_of(*[one_chat(number, title=f"Chat {number} with a rather long title") for number in range(1, 9)])
    )
    settings(page)
    page.get_by_label("Temperature", exact=True).fill("9")
    ask(page, "Hello")
    edit(page, 0, "Hello again")
    page.get_by_role("button", name="Export this chat").click()
    for part in ("", "settings", "list"):
        if part == "settings":
            settings(page)
            boxes = page.locator(".parameters .field > *").evaluate_all(BOXES)
            assert len(boxes) == 12
            assert overlapping(boxes) == []
        if part == "list":
            settings(page)
            page.get_by_role("button", name="Chats", exact=True).click()
            page.get_by_role("button", name="Delete Chat 3").click()
            expect(page.get_by_role("button", name="Undo")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.evaluate(axe)
        assert serious(page) == [], part
