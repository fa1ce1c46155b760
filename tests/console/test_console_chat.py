"""The console's chat in a real browser: the real engine's answers, and everything that a model may write."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Visitor, serious
from tests.console.speaker import OPEN_WAIT_SECONDS, Speaker, speaking
from tests.daemons import MODEL, PROGRAM, Daemon, daemon

pytestmark = pytest.mark.engine

MARKDOWN = """# A heading

Some **bold** words, `code`, and [a link](https://example.org/x).

| name | value |
|------|------:|
| one  |     1 |

- [x] done
- [ ] to do

```python
def add(a, b):
    return a + b
```

![a picture](https://example.org/picture.png)
"""
HOSTILE = """<img src=x onerror="document.title='owned'"> <script>document.title='owned'</script>
<iframe src="https://example.org"></iframe> [click](javascript:document.title='owned')
<a href="javascript:alert(1)" onclick="document.title='owned'">x</a> <form action="https://example.org"><input></form>
<style>body { display: none }</style> <svg onload="document.title='owned'"></svg> ![x](https://example.org/track.png)
[data](data:text/html,<script>document.title='owned'</script>) <base href="https://example.org">

```html
<script>document.title='owned'</script><img src=x onerror=alert(1)>
```
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Speaker]]:
    """A node with the real engine, and a speaker as a backend behind it."""
    with ExitStack() as stack:
        speaker = stack.enter_context(speaking(Speaker("speaker")))
        home = tmp_path_factory.mktemp("console")
        arguments = ("--model", MODEL, "--ctx-size", "4096", "--name", "workbench", "--backend", speaker.url)
        started = stack.enter_context(daemon(home, *arguments))
        yield started.wait_until_serving(), speaker


@pytest.fixture
def speaker(node: tuple[Daemon, Speaker]) -> Speaker:
    """What a test does not ask the real engine."""
    node[1].reset()
    return node[1]


@pytest.fixture
def chat(node: tuple[Daemon, Speaker], visitor: Visitor) -> Page:
    """The chat, with the real model."""
    page = visitor.open(f"{node[0].console_url}/#/chat")
    expect(model_of(page)).to_have_value(re.compile("."))
    model_of(page).select_option(MODEL)
    return page


def model_of(page: Page) -> Any:
    """The picker of models."""
    return page.get_by_role("combobox", name="Model")


def ask(page: Page, text: str, model: str = "") -> None:
    """Say something."""
    if model:
        model_of(page).select_option(model)
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Any:
    """What models have said."""
    return page.locator("li.answered")


def finished(page: Page, count: int = 1) -> Any:
    """The last of `count` answers, once it is there whole."""
    expect(page.locator("li.answered:not(.growing) .how")).to_have_count(count)
    return answers(page).last


def test_an_answer_of_the_real_engine_streams_in(chat: Page) -> None:
    ask(chat, "Name three colours.")
    expect(answers(chat).locator(".prose")).to_contain_text(re.compile(r"\w+"))
    answer = finished(chat)
    expect(answer.locator(".how")).to_contain_text(MODEL)
    expect(answer.locator(".how")).to_contain_text("on workbench")
    expect(answer.locator(".how")).to_contain_text(re.compile(r"\d tok/s.*\d tokens"))
    chat.get_by_role("link", name="Nodes").click()
    expect(chat.get_by_role("listitem").filter(has_text="this node")).to_contain_text("tok/s")


def test_a_client_is_told_which_node_answered(node: tuple[Daemon, Speaker], visitor: Visitor, tmp_path: Path) -> None:
    environment = {**os.environ, "MESH_LLM_HOME": str(node[0].home)}
    told = subprocess.run([str(PROGRAM), "invite"], env=environment, capture_output=True, text=True, check=True)
    invite = tmp_path / "invite"
    invite.write_text(told.stdout)
    with daemon(tmp_path / "client", "--client", "--join", f"@{invite}", "--name", "laptop") as client:
        page = visitor.open(client.console_url)
        expect(page.get_by_role("button", name=f"workbench {MODEL}")).to_be_visible()
        page.get_by_role("link", name="Chat").click()
        expect(model_of(page)).to_have_value(re.compile("."))
        ask(page, "Say hello.", MODEL)
        expect(finished(page).locator(".how")).to_contain_text("on workbench")
        page.get_by_role("link", name="Mesh").first.click()
        expect(page.get_by_role("button", name=re.compile(f"^workbench {MODEL}.*by (lane|QUIC)"))).to_be_visible()
        page.get_by_role("link", name="Join").click()
        visitor.allow("409")
        page.get_by_role("button", name="Show an invite").click()
        expect(page.get_by_role("alert")).to_contain_text("Ask a node of the mesh")


def test_an_answer_of_the_real_engine_is_stopped_in_the_middle(chat: Page) -> None:
    ask(chat, "Write a very long story about a lighthouse, with many chapters.")
    expect(answers(chat).locator(".prose")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    chat.get_by_role("button", name="Stop").click()
    expect(answers(chat)).to_contain_text("Stopped.")
    expect(chat.get_by_role("button", name="Send")).to_be_visible()
    text = answers(chat).locator(".prose").inner_text()
    # The engine hears of it: no slot is busy any more.
    chat.get_by_role("link", name="Nodes").click()
    expect(chat.get_by_role("listitem").filter(has_text="this node")).to_contain_text("0/")
    chat.go_back()
    assert answers(chat).locator(".prose").inner_text() == text


def test_a_backend_hears_that_nobody_listens(chat: Page, speaker: Speaker) -> None:
    speaker.says = "So far so good"
    speaker.goes_on.clear()
    ask(chat, "Go on", "speaker")
    expect(answers(chat).locator(".prose")).to_have_text("So far so good")
    chat.get_by_role("button", name="Stop").click()
    assert speaker.gave_up.wait(OPEN_WAIT_SECONDS)
    expect(answers(chat)).to_contain_text("Stopped.")


def test_the_model_is_switched_within_a_conversation(chat: Page, speaker: Speaker) -> None:
    speaker.says = "I am the speaker."
    ask(chat, "Who are you?", "speaker")
    expect(finished(chat).locator(".how")).to_contain_text("speaker")
    ask(chat, "And who are you?", MODEL)
    expect(finished(chat, 2).locator(".how")).to_contain_text(MODEL)
    assert [message["content"] for message in speaker.asked[0]["messages"]] == ["Who are you?"]
    ask(chat, "And again?", "speaker")
    finished(chat, 3)
    assert [message["role"] for message in speaker.asked[1]["messages"]] == ["user", "assistant"] * 2 + ["user"]


def test_markdown_becomes_what_it_means(chat: Page, speaker: Speaker) -> None:
    speaker.says = MARKDOWN
    ask(chat, "Show me", "speaker")
    answer = finished(chat)
    expect(answer.get_by_role("heading", name="A heading")).to_be_visible()
    expect(answer.locator("table td")).to_have_text(["one", "1"])
    expect(answer.locator("strong")).to_have_text("bold")
    link = answer.get_by_role("link", name="a link")
    expect(link).to_have_attribute("rel", "noopener noreferrer")
    expect(link).to_have_attribute("target", "_blank")
    expect(answer.get_by_role("checkbox")).to_have_count(2)
    code = answer.get_by_role("region", name="Code in python")
    expect(code.locator(".hljs-keyword").first).to_have_text("def")
    expect(answer.locator("img")).to_have_count(0)
    expect(answer.get_by_role("link", name="a picture")).to_have_attribute("href", "https://example.org/picture.png")
    answer.get_by_role("button", name="Copy the code").click()
    assert chat.evaluate("navigator.clipboard.readText()") == "def add(a, b):\n    return a + b"
    answer.get_by_role("button", name="Copy the answer").click()
    assert chat.evaluate("navigator.clipboard.readText()") == MARKDOWN


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_in_the_way_of_a_conversation(
    node: tuple[Daemon, Speaker], speaker: Speaker, visit: Any, axe: str, scheme: str
) -> None:
    speaker.thinks, speaker.says = "First I consider.", MARKDOWN
    page = visit(color_scheme=scheme, bypass_csp=True).open(f"{node[0].console_url}/#/chat")
    ask(page, "Show me", "speaker")
    finished(page).locator("summary").click()
    page.get_by_role("button", name="Edit and ask again").click()
    page.evaluate(axe)
    assert serious(page) == []


def test_what_a_model_writes_does_nothing_to_the_page(chat: Page, speaker: Speaker) -> None:
    speaker.says = speaker.thinks = HOSTILE
    ask(chat, HOSTILE, "speaker")
    answer = finished(chat)
    answer.locator("summary").click()
    expect(chat).not_to_have_title("owned")
    expect(answer).to_be_visible()
    for forbidden in ("script", "iframe", "img", "form", "style", "base", "svg[onload]", "[onerror]", "[onclick]"):
        expect(answer.locator(f".prose {forbidden}")).to_have_count(0)
    links = answer.locator(".prose a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
    assert all(link is None or link.startswith("https://example.org") for link in links), links


def test_thinking_is_folded(chat: Page, speaker: Speaker) -> None:
    speaker.thinks, speaker.says = "First I consider.", "Forty-two."
    ask(chat, "What is it?", "speaker")
    answer = finished(chat)
    expect(answer.get_by_text("First I consider.")).to_be_hidden()
    expect(answer.get_by_text("Forty-two.")).to_be_visible()
    answer.locator("summary").click()
    expect(answer.get_by_text("First I consider.")).to_be_visible()
    speaker.thinks, speaker.says = "", "<think>\nIn the open.\n</think>\n\nDone."
    ask(chat, "And now?")
    answer = finished(chat, 2)
    expect(answer.get_by_text("Done.")).to_be_visible()
    expect(answer.get_by_text("In the open.")).to_be_hidden()


def test_an_answer_is_tried_again_and_a_question_edited(chat: Page, speaker: Speaker) -> None:
    speaker.says = "One."
    ask(chat, "First", "speaker")
    finished(chat)
    speaker.says = "Two."
    chat.get_by_role("button", name="Try again").click()
    expect(answers(chat).locator(".prose")).to_have_text("Two.")
    expect(answers(chat)).to_have_count(1)
    finished(chat)
    chat.locator("li.said").hover()
    chat.get_by_role("button", name="Edit and ask again").click()
    chat.get_by_label("Your message").fill("Second")
    speaker.says = "Three."
    chat.get_by_role("button", name="Ask again", exact=True).click()
    expect(answers(chat).locator(".prose")).to_have_text("Three.")
    expect(chat.locator("li.said")).to_contain_text("Second")
    finished(chat)
    assert speaker.asked[-1]["messages"] == [{"role": "user", "content": "Second"}]


def test_conversations_are_kept_in_this_browser(chat: Page, speaker: Speaker) -> None:
    speaker.says = "Kept."
    ask(chat, "Remember this", "speaker")
    finished(chat)
    chat.reload()
    expect(answers(chat).locator(".prose")).to_have_text("Kept.")
    chat.get_by_role("link", name="New chat").click()
    expect(answers(chat)).to_have_count(0)
    chat.get_by_role("link", name="Remember this").click()
    expect(answers(chat).locator(".prose")).to_have_text("Kept.")
    chat.get_by_role("button", name="Delete Remember this").click()
    expect(chat.get_by_role("link", name="Remember this")).to_have_count(0)
    chat.reload()
    expect(chat.get_by_role("heading", name="Ask anything")).to_be_visible()
    expect(chat.get_by_role("link", name="Remember this")).to_have_count(0)


def test_images_are_sent_to_models_that_see_and_refusals_are_told(
    chat: Page, visitor: Visitor, speaker: Speaker, tmp_path: Path
) -> None:
    visitor.allow("400")
    picture = tmp_path / "picture.png"
    chat.screenshot(path=str(picture))
    # The model of this node is known to see nothing; what a backend has is for the backend to say.
    expect(chat.locator("input[type=file]")).to_have_count(0)
    model_of(chat).select_option("speaker")
    chat.locator("input[type=file]").set_input_files(str(picture))
    expect(chat.get_by_role("img", name="Image 1")).to_be_visible()
    model_of(chat).select_option(MODEL)
    expect(chat.get_by_role("alert")).to_contain_text("This model cannot see")
    ask(chat, "What is this?")
    expect(answers(chat)).to_have_count(0)
    speaker.says = "A chat."
    ask(chat, "What is this?", "speaker")
    finished(chat)
    sent = speaker.asked[0]["messages"][0]["content"]
    assert [part["type"] for part in sent] == ["image_url", "text"]
    assert sent[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    expect(chat.get_by_role("img", name="Image 1 you sent")).to_be_visible()
    speaker.refusal = "image input is not supported by this model"
    ask(chat, "And this?")
    expect(chat.get_by_role("alert")).to_contain_text("image input is not supported")
    expect(chat.get_by_role("button", name="Try again")).to_have_count(2)


def test_instructions_come_first(chat: Page, speaker: Speaker) -> None:
    speaker.says = "Yes."
    chat.get_by_role("button", name="Instructions").click()
    chat.get_by_label("Instructions for the model, in this chat").fill("Be brief.")
    ask(chat, "Are you?", "speaker")
    finished(chat)
    assert speaker.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_an_image_of_elsewhere_and_a_long_line_do_not_break_a_phone(
    node: tuple[Daemon, Speaker], speaker: Speaker, visit: Any
) -> None:
    speaker.says = MARKDOWN + "\n" + "x" * 400 + "\n\n```\n" + "y" * 400 + "\n```\n"
    page = visit(viewport={"width": 375, "height": 720}, is_mobile=True, has_touch=True).open(
        f"{node[0].console_url}/#/chat"
    )
    ask(page, "z" * 300, "speaker")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("link", name=re.compile("^zzz"))).to_be_visible()
