"""The console page on another device, with and without the key.

The browser runs on this machine but uses a LAN address: the daemon treats it as remote, and the page is not a secure
context (no clipboard API, no crypto.randomUUID).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from meshllm.web.http.access_control import AccessPolicy
from tests.console.conftest import Visitor, serious
from tests.console.meshes import HIDDEN_TOKEN, Stage, mesh_of, staged
from tests.console.scripted_backend import ScriptedBackend, running_backend
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, Daemon, daemon
from tests.lan_address import lan_address

PHONE = {"viewport": {"width": 375, "height": 720}, "is_mobile": True, "has_touch": True}
KEY = "the key of a made-up node"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, ScriptedBackend]]:
    """A node with --listen-all, the real engine and a scripted backend."""
    lan_address()
    with ExitStack() as stack:
        backend = stack.enter_context(running_backend(ScriptedBackend("scripted")))
        home = tmp_path_factory.mktemp("remote")
        # A small context bounds the answers of a small model.
        arguments = ("--listen-all", "--model", MODEL, "--ctx-size", "256", "--node-name", "workbench")
        started = stack.enter_context(daemon(home, *arguments, "--backend", backend.url))
        yield started.wait_until_serving(), backend


@pytest.fixture
def there(node: tuple[Daemon, ScriptedBackend]) -> str:
    """The console URL for other devices."""
    node[1].reset()
    return f"http://{lan_address()}:{urlsplit(node[0].console_url).port}"


@pytest.fixture
def phone(visit: Callable[..., Visitor]) -> Visitor:
    """A visitor with a phone; answers with status 401 are expected."""
    made = visit(**PHONE)
    made.allow("401")
    return made


def key_of(node: Daemon) -> str:
    """The node's API key."""
    return (node.home / "api-key").read_text().strip()


def unlock(page: Page, key: str) -> None:
    """Enter the key."""
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Open").click()


def ask(page: Page, text: str, model: str) -> None:
    """Send a chat message."""
    page.get_by_role("combobox", name="Model").select_option(model)
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


@pytest.mark.engine
def test_phone_with_the_key_can_chat_and_gets_no_invite(
    node: tuple[Daemon, ScriptedBackend], there: str, phone: Visitor
) -> None:
    page = phone.open(there)
    expect(page.get_by_role("heading", name="Enter the API key of this node")).to_be_visible()
    assert "workbench" not in page.content()
    unlock(page, "not the key")
    expect(page.get_by_role("alert")).to_contain_text("The key is wrong or has been changed")
    unlock(page, key_of(node[0]))
    expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()
    page.get_by_role("link", name="Join").click()
    expect(page.get_by_role("heading", name="Read-only access")).to_be_visible()
    expect(page.get_by_role("button", name="Show an invite")).to_have_count(0)
    api = f"http://{lan_address()}:{urlsplit(node[0].base_url).port}/v1"
    expect(page.get_by_role("region", name=re.compile("^curl: "))).to_contain_text(
        f"curl {api}/chat/completions -H 'Authorization: Bearer MESH_LLM_KEY'"
    )
    page.get_by_role("link", name="Chat").click()
    ask(page, "Name three colours.", MODEL)
    expect(page.locator("li.assistant-message .prose")).to_contain_text(re.compile(r"\w+"))
    how = page.locator("li.assistant-message:not(.streaming) .statistics")
    expect(how).to_contain_text("on workbench", timeout=OPEN_WAIT_SECONDS * 1000)
    expect(how).to_contain_text(re.compile(r"\d tok/s.*\d tokens"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for secret in (key_of(node[0]), str(node[0].home), "mesh2-"):
        assert secret not in page.content()
        assert not any(secret in url for url in phone.requested)


@pytest.mark.engine
def test_page_over_plain_http_copies_and_stores_conversations_and_the_key(
    node: tuple[Daemon, ScriptedBackend], there: str, phone: Visitor
) -> None:
    node[1].text = "Kept here."
    page = phone.open(there)
    assert page.evaluate("[isSecureContext, 'randomUUID' in crypto]") == [False, False]
    unlock(page, key_of(node[0]))
    page.get_by_role("link", name="Chat").click()
    ask(page, "Remember this", "scripted")
    expect(page.locator("li.assistant-message:not(.streaming) .statistics")).to_contain_text("on a backend")
    page.get_by_role("button", name="Copy the answer").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.get_by_label("Message").focus()
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Message")).to_have_value("Kept here.")
    page.reload()
    expect(page.locator("li.assistant-message .prose")).to_have_text("Kept here.")
    assert page.evaluate("JSON.stringify(localStorage)").count(key_of(node[0])) == 0
    another = phone.context.new_page()
    another.goto(there)
    expect(another.get_by_role("heading", name="Enter the API key of this node")).to_be_visible()
    page.get_by_role("link", name="Join").click()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("heading", name="Enter the API key of this node")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("heading", name="Enter the API key of this node")).to_be_visible()


@pytest.mark.engine
def test_qr_code_opens_the_page_on_a_phone(
    node: tuple[Daemon, ScriptedBackend], there: str, visitor: Visitor, phone: Visitor
) -> None:
    desk = visitor.open(f"{node[0].console_url}/#/join", node[0].token)
    key = key_of(node[0])
    assert key not in desk.content()
    card = desk.get_by_role("region", name="Other devices")
    expect(card).to_contain_text(there)
    card.get_by_role("button", name="Show the QR code and the key").click()
    expect(card.get_by_role("img", name="The console’s address and the key as a QR code")).to_be_visible()
    expect(card.get_by_role("region", name="API key of this node")).to_have_text(key)
    desk.get_by_role("link", name="Nodes").click()
    desk.get_by_role("link", name="Join").click()
    expect(card.get_by_role("button", name="Show the QR code and the key")).to_be_visible()
    assert key not in desk.content()
    page = phone.open(f"{there}/#key={key}")
    expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()
    assert key not in page.url
    # Another one, in the same tab.
    page.evaluate("location.hash = '#key=wrong'")
    expect(page.get_by_role("alert")).to_contain_text("The key is wrong or has been changed")
    page.evaluate("key => { location.hash = '#key=' + key }", key)
    expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()


def remote(stage: Stage, key: str = KEY) -> Stage:
    """The same, accepting other machines."""
    stage.policy = AccessPolicy(key)
    stage.hosts = ("0.0.0.0",)
    return stage


@pytest.mark.engine
def test_page_of_another_port_is_refused_even_with_the_key(
    node: tuple[Daemon, ScriptedBackend], there: str, visit: Callable[..., Visitor]
) -> None:
    visitor = visit(bypass_csp=True)  # it is any page, not one that keeps itself from asking
    for words in ("CORS policy", "ERR_FAILED", "401", "403"):
        visitor.allow(words)
    api = f"http://{lan_address()}:{urlsplit(node[0].base_url).port}/v1/models"
    with staged(remote(mesh_of(1))) as other:
        page = visitor.open(f"http://{lan_address()}:{other.port}")
        for url in (f"{there}/api/status", api):
            told = page.evaluate(
                """async ([url, key]) => {
                    try { return (await fetch(url, { headers: { authorization: `Bearer ${key}` } })).status }
                    catch { return 'refused' }
                }""",
                [url, key_of(node[0])],
            )
            assert told == "refused"


def test_changed_key_shows_the_key_prompt_again(visit: Callable[..., Visitor]) -> None:
    visitor = visit(**PHONE)
    visitor.allow("401")
    visitor.allow("ERR_")
    host = lan_address()
    with staged(remote(mesh_of(3))) as stage:
        page, port = visitor.open(f"http://{host}:{stage.port}"), stage.port
        unlock(page, KEY)
        expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    again = remote(mesh_of(3), "another key")
    again.port = port
    with staged(again):
        expect(page.get_by_role("alert")).to_contain_text("has been changed")
        assert "workbench" not in page.content()
        unlock(page, "another key")
        expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()


@pytest.mark.parametrize("view", ["mesh", "nodes", "models", "chat", "blackboard", "join"])
def test_view_on_another_device_shows_no_secrets(view: str, visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.allow("401")
    with staged(remote(mesh_of(30))) as stage:
        page = visitor.open(f"http://{lan_address()}:{stage.port}/#/{view}")
        unlock(page, KEY)
        expect(page.locator("header.side")).to_contain_text("read-only")
        page.locator("main h1").wait_for(state="attached")
        if view in ("mesh", "nodes"):
            page.get_by_role("button", name=re.compile("^amber")).first.click()
            expect(page.get_by_role("complementary", name="Node amber")).to_contain_text("Round trip")
        for secret in (HIDDEN_TOKEN, KEY, "192.0.2.1:41000", ".gguf", ".sock", "localhost:8000"):
            assert secret not in page.content(), secret


def test_join_view_names_the_option_for_other_devices(visitor: Visitor) -> None:
    with staged(mesh_of(3)) as stage:
        page = visitor.open(f"{stage.url}/#/join")
        card = page.get_by_role("region", name="Other devices")
        expect(card.get_by_role("region", name="Command")).to_have_text("mesh-llm stop && mesh-llm --listen-all")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_views_on_another_device_pass_axe(scheme: str, axe: str, visit: Callable[..., Visitor]) -> None:
    visitor = visit(color_scheme=scheme, bypass_csp=True, **PHONE)
    visitor.allow("401")
    stage = remote(mesh_of(3))
    with staged(stage):
        page = visitor.open(f"http://{lan_address()}:{stage.port}/#/join")
        unlock(page, "wrong")
        page.get_by_role("alert").wait_for()
        page.evaluate(axe)
        assert serious(page) == []
        unlock(page, KEY)
        page.get_by_role("heading", name="Read-only access").wait_for()
        assert serious(page) == []
        stage.lan_urls = (f"http://{lan_address()}:{stage.port}",)
        page = visitor.open(f"http://localhost:{stage.port}/#/join")
        page.get_by_role("button", name="Show the QR code and the key").click()
        page.get_by_role("img", name="The console’s address and the key as a QR code").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.evaluate(axe)
        assert serious(page) == []
