"""The chat of the console page in a browser: answers of the engine, and any text of a model."""

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
from tests.console.scripted_backend import OPEN_WAIT_SECONDS, ScriptedBackend, running_backend
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
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, ScriptedBackend]]:
    """A node with the real engine and a scripted backend."""
    with ExitStack() as stack:
        backend = stack.enter_context(running_backend(ScriptedBackend("scripted")))
        home = tmp_path_factory.mktemp("console")
        arguments = ("--model", MODEL, "--ctx-size", "4096", "--node-name", "workbench", "--backend", backend.url)
        started = stack.enter_context(daemon(home, *arguments))
        yield started.wait_until_serving(), backend


@pytest.fixture
def backend(node: tuple[Daemon, ScriptedBackend]) -> ScriptedBackend:
    """The scripted backend, in its initial state."""
    node[1].reset()
    return node[1]


@pytest.fixture
def chat(node: tuple[Daemon, ScriptedBackend], visitor: Visitor) -> Page:
    """The chat with the engine's model selected."""
    page = visitor.open(f"{node[0].console_url}/#/chat", node[0].token)
    expect(model_of(page)).to_have_value(re.compile("."))
    model_of(page).select_option(MODEL)
    return page


def model_of(page: Page) -> Any:
    """The model selection."""
    return page.get_by_role("combobox", name="Model")


def ask(page: Page, text: str, model: str = "") -> None:
    """Send a message."""
    if model:
        model_of(page).select_option(model)
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Any:
    """All answers."""
    return page.locator("li.assistant-message")


def finished(page: Page, count: int = 1) -> Any:
    """The last of `count` answers, when all are complete."""
    expect(page.locator("li.assistant-message:not(.streaming) .statistics")).to_have_count(count)
    return answers(page).last


def test_chat_streams_an_answer_of_the_engine(chat: Page) -> None:
    ask(chat, "Name three colours.")
    expect(answers(chat).locator(".prose")).to_contain_text(re.compile(r"\w+"))
    answer = finished(chat)
    expect(answer.locator(".statistics")).to_contain_text(MODEL)
    expect(answer.locator(".statistics")).to_contain_text("on workbench")
    expect(answer.locator(".statistics")).to_contain_text(re.compile(r"\d tok/s.*\d tokens"))
    chat.get_by_role("link", name="Nodes").click()
    expect(chat.get_by_role("listitem").filter(has_text="this node")).to_contain_text("tok/s")


def test_chat_of_a_client_names_the_node_that_answered(
    node: tuple[Daemon, ScriptedBackend], visitor: Visitor, tmp_path: Path
) -> None:
    environment = {**os.environ, "MESH_LLM_HOME": str(node[0].home)}
    told = subprocess.run([str(PROGRAM), "invite"], env=environment, capture_output=True, text=True, check=True)
    invite = tmp_path / "invite"
    invite.write_text(told.stdout)
    with daemon(tmp_path / "client", "--client", "--join", f"@{invite}", "--node-name", "laptop") as client:
        page = visitor.open(client.console_url, client.token)
        expect(page.get_by_role("button", name=f"workbench {MODEL}")).to_be_visible()
        page.get_by_role("link", name="Chat").click()
        expect(model_of(page)).to_have_value(re.compile("."))
        ask(page, "Say hello.", MODEL)
        expect(finished(page).locator(".statistics")).to_contain_text("on workbench")
        page.get_by_role("link", name="Mesh").first.click()
        expect(
            page.get_by_role("button", name=re.compile(f"^workbench {MODEL}.*by (fast )?connection"))
        ).to_be_visible()
        page.get_by_role("link", name="Join").click()
        visitor.allow("409")
        page.get_by_role("button", name="Show an invite").click()
        expect(page.get_by_role("alert")).to_contain_text("on a node of the mesh")


def test_chat_stop_frees_the_slot_of_the_engine(chat: Page) -> None:
    ask(chat, "Write a very long story about a lighthouse, with many chapters.")
    expect(answers(chat).locator(".prose")).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    chat.get_by_role("button", name="Stop").click()
    expect(answers(chat)).to_contain_text("Stopped.")
    expect(chat.get_by_role("button", name="Send")).to_be_visible()
    text = answers(chat).locator(".prose").inner_text()
    # The engine has stopped: no slot is busy.
    chat.get_by_role("link", name="Nodes").click()
    expect(chat.get_by_role("listitem").filter(has_text="this node")).to_contain_text("0 of")
    chat.go_back()
    assert answers(chat).locator(".prose").inner_text() == text


def test_chat_stop_closes_the_connection_to_a_backend(chat: Page, backend: ScriptedBackend) -> None:
    backend.text = "So far so good"
    backend.may_finish.clear()
    ask(chat, "Go on", "scripted")
    expect(answers(chat).locator(".prose")).to_have_text("So far so good")
    chat.get_by_role("button", name="Stop").click()
    assert backend.disconnected.wait(OPEN_WAIT_SECONDS)
    expect(answers(chat)).to_contain_text("Stopped.")


def test_chat_switches_the_model_within_a_conversation(chat: Page, backend: ScriptedBackend) -> None:
    backend.text = "I am the backend."
    ask(chat, "Who are you?", "scripted")
    expect(finished(chat).locator(".statistics")).to_contain_text("scripted")
    ask(chat, "And who are you?", MODEL)
    expect(finished(chat, 2).locator(".statistics")).to_contain_text(MODEL)
    assert [message["content"] for message in backend.received[0]["messages"]] == ["Who are you?"]
    ask(chat, "And again?", "scripted")
    finished(chat, 3)
    assert [message["role"] for message in backend.received[1]["messages"]] == ["user", "assistant"] * 2 + ["user"]


def test_chat_renders_markdown(chat: Page, backend: ScriptedBackend) -> None:
    backend.text = MARKDOWN
    ask(chat, "Show me", "scripted")
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
def test_chat_passes_axe(
    node: tuple[Daemon, ScriptedBackend], backend: ScriptedBackend, visit: Any, axe: str, scheme: str
) -> None:
    backend.thinking, backend.text = "First I consider.", MARKDOWN
    page = visit(color_scheme=scheme, bypass_csp=True).open(f"{node[0].console_url}/#/chat", node[0].token)
    ask(page, "Show me", "scripted")
    finished(page).locator("summary").click()
    page.get_by_role("button", name="Edit and submit again").click()
    page.evaluate(axe)
    assert serious(page) == []


def test_chat_sanitises_html_of_a_model(chat: Page, backend: ScriptedBackend) -> None:
    backend.text = backend.thinking = HOSTILE
    ask(chat, HOSTILE, "scripted")
    answer = finished(chat)
    answer.locator("summary").click()
    expect(chat).not_to_have_title("owned")
    expect(answer).to_be_visible()
    for forbidden in ("script", "iframe", "img", "form", "style", "base", "svg[onload]", "[onerror]", "[onclick]"):
        expect(answer.locator(f".prose {forbidden}")).to_have_count(0)
    links = answer.locator(".prose a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
    assert all(link is None or link.startswith("https://example.org") for link in links), links


def test_chat_folds_thinking(chat: Page, backend: ScriptedBackend) -> None:
    backend.thinking, backend.text = "First I consider.", "Forty-two."
    ask(chat, "What is it?", "scripted")
    answer = finished(chat)
    expect(answer.get_by_text("First I consider.")).to_be_hidden()
    expect(answer.get_by_text("Forty-two.")).to_be_visible()
    answer.locator("summary").click()
    expect(answer.get_by_text("First I consider.")).to_be_visible()
    backend.thinking, backend.text = "", "<think>\nIn the open.\n</think>\n\nDone."
    ask(chat, "And now?")
    answer = finished(chat, 2)
    expect(answer.get_by_text("Done.")).to_be_visible()
    expect(answer.get_by_text("In the open.")).to_be_hidden()


def test_chat_regenerates_an_answer_and_edits_a_message(chat: Page, backend: ScriptedBackend) -> None:
    backend.text = "One."
    ask(chat, "First", "scripted")
    finished(chat)
    backend.text = "Two."
    chat.get_by_role("button", name="Regenerate").click()
    expect(answers(chat).locator(".prose")).to_have_text("Two.")
    expect(answers(chat)).to_have_count(1)
    finished(chat)
    chat.locator("li.user-message").hover()
    chat.get_by_role("button", name="Edit and submit again").click()
    chat.get_by_label("Your message").fill("Second")
    backend.text = "Three."
    chat.get_by_role("button", name="Submit", exact=True).click()
    expect(answers(chat).locator(".prose")).to_have_text("Three.")
    expect(chat.locator("li.user-message")).to_contain_text("Second")
    finished(chat)
    assert backend.received[-1]["messages"] == [{"role": "user", "content": "Second"}]


def test_chat_stores_conversations_in_the_browser(chat: Page, backend: ScriptedBackend) -> None:
    backend.text = "Kept."
    ask(chat, "Remember this", "scripted")
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


def test_chat_sends_images_to_vision_models_and_shows_refusals(
    chat: Page, visitor: Visitor, backend: ScriptedBackend, tmp_path: Path
) -> None:
    visitor.allow("400")
    picture = tmp_path / "picture.png"
    chat.screenshot(path=str(picture))
    # The node's model has no vision; of the backend's model this is unknown.
    expect(chat.locator(".composer input[type=file]")).to_have_count(0)
    model_of(chat).select_option("scripted")
    chat.locator(".composer input[type=file]").set_input_files(str(picture))
    expect(chat.get_by_role("img", name="Image 1")).to_be_visible()
    model_of(chat).select_option(MODEL)
    expect(chat.get_by_role("alert")).to_contain_text("This model does not support images")
    ask(chat, "What is this?")
    expect(answers(chat)).to_have_count(0)
    backend.text = "A chat."
    ask(chat, "What is this?", "scripted")
    finished(chat)
    sent = backend.received[0]["messages"][0]["content"]
    assert [part["type"] for part in sent] == ["image_url", "text"]
    assert sent[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    expect(chat.get_by_role("img", name="Image 1 of your message")).to_be_visible()
    backend.refusal = "image input is not supported by this model"
    ask(chat, "And this?")
    expect(chat.get_by_role("alert")).to_contain_text("the model does not support images")
    expect(chat.get_by_role("button", name="Regenerate")).to_have_count(1)
    expect(chat.get_by_role("button", name="Try again")).to_have_count(1)


def test_chat_sends_the_system_prompt_first(chat: Page, backend: ScriptedBackend) -> None:
    backend.text = "Yes."
    chat.get_by_role("button", name="Settings of this chat").click()
    chat.get_by_label("System prompt of this chat").fill("Be brief.")
    ask(chat, "Are you?", "scripted")
    finished(chat)
    assert backend.received[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_chat_fits_a_phone_with_long_lines(
    node: tuple[Daemon, ScriptedBackend], backend: ScriptedBackend, visit: Any
) -> None:
    backend.text = MARKDOWN + "\n" + "x" * 400 + "\n\n```\n" + "y" * 400 + "\n```\n"
    page = visit(viewport={"width": 375, "height": 720}, is_mobile=True, has_touch=True).open(
        f"{node[0].console_url}/#/chat", node[0].token
    )
    ask(page, "z" * 300, "scripted")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.get_by_role("button", name="Chats", exact=True).click()
    expect(page.get_by_role("link", name=re.compile("^zzz"))).to_be_visible()
