"""The console on another device: a phone that comes by this machine's address in its network, with the key or without.

The browser runs here, but comes by an address that is not loopback: for the daemon it is on another machine, and for
the browser the page is one of plain HTTP, which has less of everything (no clipboard, no ids, no sandbox of its own).
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
from tests.console.speaker import Speaker, speaking
from tests.daemons import MODEL, OPEN_WAIT_SECONDS, Daemon, daemon
from tests.elsewhere import own_address

PHONE = {"viewport": {"width": 375, "height": 720}, "is_mobile": True, "has_touch": True}
KEY = "the key of a node that is made up"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Speaker]]:
    """A node that other machines may call, with the real engine, and a speaker as a backend behind it."""
    own_address()
    with ExitStack() as stack:
        speaker = stack.enter_context(speaking(Speaker("speaker")))
        home = tmp_path_factory.mktemp("elsewhere")
        # A small context ends a small model that does not find an end.
        arguments = ("--listen-all", "--model", MODEL, "--ctx-size", "256", "--name", "workbench")
        started = stack.enter_context(daemon(home, *arguments, "--backend", speaker.url))
        yield started.wait_until_serving(), speaker


@pytest.fixture
def there(node: tuple[Daemon, Speaker]) -> str:
    """The console as other devices find it."""
    node[1].reset()
    return f"http://{own_address()}:{urlsplit(node[0].console_url).port}"


@pytest.fixture
def phone(visit: Callable[..., Visitor]) -> Visitor:
    """Somebody with a phone, who has to hear now and then that there is no way in without the key."""
    made = visit(**PHONE)
    made.allow("401")
    return made


def key_of(node: Daemon) -> str:
    """What its owner knows."""
    return (node.home / "api-key").read_text().strip()


def unlock(page: Page, key: str) -> None:
    """Give the page the key."""
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Open").click()


def ask(page: Page, text: str, model: str) -> None:
    """Say something in the chat."""
    page.get_by_role("combobox", name="Model").select_option(model)
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


@pytest.mark.engine
def test_a_phone_is_let_in_by_the_key_and_chats_and_sees_no_invite(
    node: tuple[Daemon, Speaker], there: str, phone: Visitor
) -> None:
    page = phone.open(there)
    expect(page.get_by_role("heading", name="This node wants its key")).to_be_visible()
    assert "workbench" not in page.content()
    unlock(page, "not the key")
    expect(page.get_by_role("alert")).to_contain_text("That is not the key of this node")
    unlock(page, key_of(node[0]))
    expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()
    page.get_by_role("link", name="Join").click()
    expect(page.get_by_role("heading", name="Read-only from here")).to_be_visible()
    expect(page.get_by_role("button", name="Show an invite")).to_have_count(0)
    api = f"http://{own_address()}:{urlsplit(node[0].base_url).port}/v1"
    expect(page.get_by_role("region", name=re.compile("^curl: "))).to_contain_text(
        f"curl {api}/chat/completions -H 'Authorization: Bearer KEY'"
    )
    page.get_by_role("link", name="Chat").click()
    ask(page, "Name three colours.", MODEL)
    expect(page.locator("li.answered .prose")).to_contain_text(re.compile(r"\w+"))
    how = page.locator("li.answered:not(.growing) .how")
    expect(how).to_contain_text("on workbench", timeout=OPEN_WAIT_SECONDS * 1000)
    expect(how).to_contain_text(re.compile(r"\d tok/s.*\d tokens"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for secret in (key_of(node[0]), str(node[0].home), "mesh1-"):
        assert secret not in page.content()
        assert not any(secret in url for url in phone.asked)


@pytest.mark.engine
def test_a_page_of_plain_http_copies_keeps_conversations_and_the_key_for_its_tab(
    node: tuple[Daemon, Speaker], there: str, phone: Visitor
) -> None:
    node[1].says = "Kept here."
    page = phone.open(there)
    assert page.evaluate("[isSecureContext, 'randomUUID' in crypto]") == [False, False]
    unlock(page, key_of(node[0]))
    page.get_by_role("link", name="Chat").click()
    ask(page, "Remember this", "speaker")
    expect(page.locator("li.answered:not(.growing) .how")).to_contain_text("on a backend")
    page.get_by_role("button", name="Copy the answer").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.get_by_label("Message").focus()
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Message")).to_have_value("Kept here.")
    page.reload()
    expect(page.locator("li.answered .prose")).to_have_text("Kept here.")
    assert page.evaluate("JSON.stringify(localStorage)").count(key_of(node[0])) == 0
    another = phone.context.new_page()
    another.goto(there)
    expect(another.get_by_role("heading", name="This node wants its key")).to_be_visible()
    page.get_by_role("link", name="Join").click()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("heading", name="This node wants its key")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("heading", name="This node wants its key")).to_be_visible()


@pytest.mark.engine
def test_the_code_on_this_machine_opens_the_page_on_a_phone(
    node: tuple[Daemon, Speaker], there: str, visitor: Visitor, phone: Visitor
) -> None:
    desk = visitor.open(f"{node[0].console_url}/#/join")
    key = key_of(node[0])
    assert key not in desk.content()
    card = desk.get_by_role("region", name="A phone, or another computer")
    expect(card).to_contain_text(there)
    card.get_by_role("button", name="Show the code and the key").click()
    expect(card.get_by_role("img", name="The console’s address and the key as a QR code")).to_be_visible()
    expect(card.get_by_role("region", name="Key of this node")).to_have_text(key)
    desk.get_by_role("link", name="Nodes").click()
    desk.get_by_role("link", name="Join").click()
    expect(card.get_by_role("button", name="Show the code and the key")).to_be_visible()
    assert key not in desk.content()
    page = phone.open(f"{there}/#key={key}")
    expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()
    assert key not in page.url
    # Another one, in the same tab.
    page.evaluate("location.hash = '#key=wrong'")
    expect(page.get_by_role("alert")).to_contain_text("That is not the key of this node")
    page.evaluate("key => { location.hash = '#key=' + key }", key)
    expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()


def elsewhere(stage: Stage, key: str = KEY) -> Stage:
    """The same, for other machines as well."""
    stage.policy = AccessPolicy(key)
    stage.hosts = ("0.0.0.0",)
    return stage


@pytest.mark.engine
def test_another_page_of_this_machine_gets_nothing_even_with_the_key(
    node: tuple[Daemon, Speaker], there: str, visit: Callable[..., Visitor]
) -> None:
    visitor = visit(bypass_csp=True)  # it is any page, not one that keeps itself from asking
    for words in ("CORS policy", "ERR_FAILED", "401", "403"):
        visitor.allow(words)
    api = f"http://{own_address()}:{urlsplit(node[0].base_url).port}/v1/models"
    with staged(elsewhere(mesh_of(1))) as other:
        page = visitor.open(f"http://{own_address()}:{other.port}")
        for url in (f"{there}/api/status", api):
            told = page.evaluate(
                """async ([url, key]) => {
                    try { return (await fetch(url, { headers: { authorization: `Bearer ${key}` } })).status }
                    catch { return 'refused' }
                }""",
                [url, key_of(node[0])],
            )
            assert told == "refused"


def test_a_key_that_is_right_no_more_is_asked_for_again(visit: Callable[..., Visitor]) -> None:
    visitor = visit(**PHONE)
    visitor.allow("401")
    visitor.allow("ERR_")
    host = own_address()
    with staged(elsewhere(mesh_of(3))) as stage:
        page, port = visitor.open(f"http://{host}:{stage.port}"), stage.port
        unlock(page, KEY)
        expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("does not answer any more")
    again = elsewhere(mesh_of(3), "another key")
    again.port = port
    with staged(again):
        expect(page.get_by_role("alert")).to_contain_text("or not any more")
        assert "workbench" not in page.content()
        unlock(page, "another key")
        expect(page.get_by_role("button", name=re.compile("^workbench"))).to_be_visible()


@pytest.mark.parametrize("view", ["mesh", "nodes", "models", "chat", "join"])
def test_no_view_tells_another_device_what_is_its_owners_alone(view: str, visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.allow("401")
    with staged(elsewhere(mesh_of(30))) as stage:
        page = visitor.open(f"http://{own_address()}:{stage.port}/#/{view}")
        unlock(page, KEY)
        expect(page.locator("header.side")).to_contain_text("read-only from here")
        page.locator("main h1").wait_for(state="attached")
        if view in ("mesh", "nodes"):
            page.get_by_role("button", name=re.compile("^amber")).first.click()
            expect(page.get_by_role("complementary", name="Node amber")).to_contain_text("Round trip")
        for secret in (HIDDEN_TOKEN, KEY, "192.0.2.1:41000", ".gguf", ".sock", "localhost:8000"):
            assert secret not in page.content(), secret


def test_without_the_option_it_is_told_how_other_devices_would_be_let_in(visitor: Visitor) -> None:
    with staged(mesh_of(3)) as stage:
        page = visitor.open(f"{stage.url}/#/join")
        card = page.get_by_role("region", name="A phone, or another computer")
        expect(card.get_by_role("region", name="Option")).to_have_text("mesh-llm --listen-all")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_in_the_way_of_who_comes_from_elsewhere(
    scheme: str, axe: str, visit: Callable[..., Visitor]
) -> None:
    visitor = visit(color_scheme=scheme, bypass_csp=True, **PHONE)
    visitor.allow("401")
    stage = elsewhere(mesh_of(3))
    with staged(stage):
        page = visitor.open(f"http://{own_address()}:{stage.port}/#/join")
        unlock(page, "wrong")
        page.get_by_role("alert").wait_for()
        page.evaluate(axe)
        assert serious(page) == []
        unlock(page, KEY)
        page.get_by_role("heading", name="Read-only from here").wait_for()
        assert serious(page) == []
        stage.lan_urls = (f"http://{own_address()}:{stage.port}",)
        page = visitor.open(f"http://localhost:{stage.port}/#/join")
        page.get_by_role("button", name="Show the code and the key").click()
        page.get_by_role("img", name="The console’s address and the key as a QR code").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.evaluate(axe)
        assert serious(page) == []
