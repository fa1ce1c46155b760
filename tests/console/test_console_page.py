"""The console page in a browser: all views, live updates, keyboard, phone and accessibility."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import pytest
from playwright.sync_api import expect

from meshllm.core.membership.views import PeerStatus, PeerView
from meshllm.errors import EnvironmentFailure
from meshllm.web.console.page_files import FOLDER
from meshllm.web.console.status import StartStatus
from tests.console.conftest import Visitor, serious
from tests.console.meshes import HIDDEN_TOKEN, Stage, idle, mesh_of, peer, split_over, staged, with_requests
from tests.console.overlap import overlapping

VIEWS = ("mesh", "nodes", "models", "requests", "chat", "blackboard", "join")


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Three nodes and a backend."""
    with staged(mesh_of(3)) as made:
        yield made


def test_page_has_a_strict_content_security_policy(stage: Stage, visitor: Visitor) -> None:
    with visitor.page.expect_response(lambda response: response.url == f"{stage.url}/") as waited:
        page = visitor.open(stage.url)
    expect(page).to_have_title("Mesh · workbench")
    policy = waited.value.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert waited.value.headers["x-frame-options"] == "DENY"
    expect(page.locator("header.side")).to_contain_text("workbench")


def test_page_cannot_be_framed(stage: Stage, visitor: Visitor) -> None:
    visitor.allow("Framing")
    visitor.allow("frame-ancestors")
    visitor.allow("refused to connect")
    visitor.allow("chrome-error")
    page = visitor.open(stage.url)
    held = page.evaluate(
        """async (url) => {
            const frame = document.createElement('iframe')
            const loaded = new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 3000) })
            frame.src = url
            document.body.append(frame)
            await loaded
            try { return frame.contentDocument?.querySelector('h1')?.textContent ?? null } catch { return null }
        }""",
        stage.url,
    )
    assert held is None


@pytest.mark.parametrize("count", [1, 3, 30, 300])
def test_picture_shows_every_node_without_overlap(count: int, visitor: Visitor) -> None:
    with staged(mesh_of(count)) as stage:
        page = visitor.open(stage.url)
        dots = page.locator("svg [role=button]")
        expect(dots).to_have_count(count + 4 * (count > 2))  # and a backend and three clients
        boxes = page.eval_on_selector_all(
            "svg [role=button] .body",
            "found => found.map((one) => { const { x, y, width, height } = one.getBoundingClientRect(); "
            "return [x, y, width, height] })",
        )
        assert overlapping(boxes) == []
        frame = page.locator("main").bounding_box()
        assert frame is not None
        for x, y, width, height in boxes:
            assert frame["x"] <= x
            assert x + width <= frame["x"] + frame["width"]
            assert frame["y"] <= y
            assert y + height <= frame["y"] + frame["height"]
            assert width >= 6, "large enough to be seen"


def test_picture_follows_changes_of_the_mesh(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(stage.url)
    expect(page.locator("svg [role=button]")).to_have_count(7)
    expect(page.get_by_role("button", name="amber Qwen3-8B")).to_be_visible()

    def silenced(peers: tuple[PeerView, ...]) -> tuple[PeerView, ...]:
        return (replace(peers[0], status=PeerStatus.SUSPECT, reason="no answer for 3 s"), *peers[1:])

    stage.peers(silenced)
    expect(page.get_by_role("button", name="amber not responding")).to_be_visible()
    expect(page.locator(".head")).to_contain_text("1 not responding")
    stage.peers(lambda peers: (*peers, peer(3, Random(3))))
    expect(page.get_by_role("button", name="delta Qwen3-32B")).to_be_visible()
    stage.peers(lambda peers: peers[1:])
    expect(page.get_by_role("button", name="amber")).to_have_count(0)


def test_node_details_open_by_keyboard(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(stage.url)
    page.locator("svg [role=button][tabindex='0']").focus()
    expect(page.locator("svg [role=button]:focus")).to_have_attribute(
        "aria-label", re.compile("^workbench Qwen3-8B-Q4_K_M; this node; host")
    )
    page.keyboard.press("ArrowRight")
    expect(page.locator("svg [role=button]:focus")).to_have_attribute("aria-label", re.compile("^amber"))
    page.keyboard.press("Enter")
    details = page.get_by_role("complementary", name="Node amber")
    expect(details).to_contain_text("Qwen3-8B-Q4_K_M")
    expect(details).to_contain_text("32k context")
    expect(details).to_contain_text("Round trip")
    expect(details).to_contain_text("QUIC")
    expect(details).to_contain_text("0.1.0")
    page.keyboard.press("Escape")
    expect(details).to_have_count(0)


def test_views_are_reached_by_keyboard(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(stage.url)
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    page.keyboard.press("Tab")  # the brand
    for name in ("Mesh", "Nodes"):
        page.keyboard.press("Tab")
        expect(page.locator(":focus")).to_have_text(name)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Nodes")).to_be_visible()
    expect(page.locator("main")).to_be_focused()


def test_nodes_view_shows_memory_load_and_speed(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/nodes")
    here = page.get_by_role("listitem").filter(has_text="this node")
    for words in (
        "1 of 4 slots busy",
        "32k context",
        "87 tok/s",
        "39.0 GB free of 64.0 GB",
        "NVIDIA RTX 4090",
        "v0.1.0",
    ):
        expect(here).to_contain_text(words)
    expect(here.get_by_role("img", name=re.compile("models use 7.4 GB"))).to_have_count(1)
    amber = page.get_by_role("listitem").filter(has_text="amber")
    # The same quantities in the row of this node and in that of another.
    expect(here).to_contain_text(re.compile(r"Models7.4 GB now of at most 9.2 GB, 56.0 GB offered for more"))
    expect(amber).to_contain_text(re.compile(r"Models[\d.]+ GB now of at most [\d.]+ GB, [\d.]+ GB offered for more"))
    expect(amber).to_contain_text("ms away")


def test_nodes_view_filters_by_text(visitor: Visitor) -> None:
    with staged(mesh_of(60)) as stage:
        page = visitor.open(f"{stage.url}/#/nodes")
        page.get_by_label("Find a node").fill("cedar-2")
        expect(page.locator(".rows > li")).to_have_count(1)
        page.get_by_label("Find a node").fill("no such node")
        expect(page.locator("main")).to_contain_text("No node matches the filter")


def test_models_view_explains_the_availability_of_each_model(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/models")

    def row(name: str) -> object:
        return page.locator(".rows > li").filter(has=page.locator(".name", has_text=name))

    expect(row("Qwen3-8B")).to_contain_text("Served by 2 nodes")  # type: ignore[arg-type]
    expect(row("Qwen3-8B")).to_contain_text("amber")  # type: ignore[arg-type]
    expect(row("Mistral-Small")).to_contain_text("fetching 42 %")  # type: ignore[arg-type]
    expect(row("Mistral-Small")).to_contain_text("5.6 of 13.3 GB, 88 MB/s")  # type: ignore[arg-type]
    expect(row("Mistral-Small").get_by_role("progressbar")).to_have_attribute("aria-valuenow", "42")  # type: ignore[attr-defined]
    expect(row("DeepSeek-R1")).to_contain_text("no known node has the file")  # type: ignore[arg-type]
    expect(row("bge-m3")).to_have_count(1)  # type: ignore[arg-type]
    expect(row("bge-m3")).to_contain_text("run there: mesh-llm load bge-m3")  # type: ignore[arg-type]
    expect(row("bge-m3")).to_contain_text("also bge-m3-Q8_0")  # type: ignore[arg-type]
    exchanged = page.get_by_role("region", name="Model file transfers")
    expect(exchanged).to_contain_text("Mistral-Small-24B-Q4_K_M from amber: 2.0 GB, 62.0 MB/s by lane")
    expect(exchanged).to_contain_text("31.0 GB uploaded")
    page.get_by_role("link", name="Chat", exact=True).last.click()
    expect(page.get_by_role("combobox", name="Model")).to_have_value(re.compile("Qwen3|gpt-oss"))


def test_split_is_drawn_as_a_pipeline_with_its_shares(visitor: Visitor) -> None:
    with staged(split_over(mesh_of(6))) as stage:
        page = visitor.open(stage.url)
        # From the host to one, to the other, and back.
        expect(page.locator(".pipe:not(.forming) path")).to_have_count(3)
        expect(page.get_by_role("button", name="birch layers 34 to 59")).to_have_class(re.compile("worker"))
        expect(page.get_by_role("list", name="Legend")).to_contain_text("worker")
        page.get_by_role("button", name="birch layers 34 to 59").click()
        details = page.get_by_role("complementary", name="Node birch")
        expect(details).to_contain_text("layers 34 to 59 · at most 13.0 GB · 60.0 MB transferred")
        page.get_by_role("link", name="Models").click()
        row = page.locator(".rows > li").filter(has=page.locator(".name", has_text="Llama-3.3-70B"))
        carriers = row.get_by_role("list", name="Layers of Llama-3.3-70B-Instruct-Q4_K_M")
        expect(carriers.get_by_role("listitem")).to_have_count(3)
        expect(carriers).to_contain_text("workbench")
        expect(row).to_contain_text("Forecast 118 ms per token, measured 121 ms.")
        expect(row).to_contain_text("do not fit into this node")
        row.get_by_text("Plans that were compared").click()
        expect(row).to_contain_text("workbench → birch → cedar: 118 ms per token")


def test_split_says_why_its_forecast_is_off_and_that_it_is_corrected(visitor: Visitor) -> None:
    with staged(
        split_over(mesh_of(6), plain=0.02, text="2.0 times slower than forecast: the cause is unknown")
    ) as stage:
        page = visitor.open(f"{stage.url}/#/models")
        row = page.locator(".rows > li").filter(has=page.locator(".name", has_text="Llama-3.3-70B"))
        expect(row).to_contain_text("Corrected forecast 118 ms per token, measured 121 ms.")
        expect(row).to_contain_text("2.0 times slower than forecast: the cause is unknown.")
        expect(row).to_contain_text("Memory here: 13.9 GB now, at most 17.4 GB.")


def test_split_in_preparation_shows_progress_and_forecast(visitor: Visitor) -> None:
    with staged(split_over(mesh_of(6), committed=False)) as stage:
        page = visitor.open(stage.url)
        expect(page.locator(".pipe.forming path")).to_have_count(3)
        page.get_by_role("link", name="Models").click()
        row = page.locator(".rows > li").filter(has=page.locator(".name", has_text="Llama-3.3-70B"))
        expect(row).to_contain_text("layers 34 to 59, loads its layers, 40 %")
        expect(row).to_contain_text("Forecast 118 ms per token, not measured yet.")


def test_invite_is_made_on_request_and_dropped_with_the_view(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/join")
    expect(page.get_by_role("heading", name="Join", exact=True)).to_be_visible()
    assert not any("/api/invite" in url for url in visitor.requested)
    assert HIDDEN_TOKEN not in page.content()
    page.get_by_role("button", name="Show an invite").click()
    expect(page.get_by_role("region", name="Command to join")).to_have_text(f"mesh-llm --join {HIDDEN_TOKEN}")
    expect(page.get_by_role("img", name="The invite as a QR code")).to_be_visible()
    page.get_by_role("button", name="Copy the invite only").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == HIDDEN_TOKEN
    page.get_by_role("link", name="Nodes").click()
    expect(page.get_by_role("heading", name="Nodes")).to_be_visible()
    page.get_by_role("link", name="Join").click()
    expect(page.get_by_role("button", name="Show an invite")).to_be_visible()
    assert HIDDEN_TOKEN not in page.content()


def test_invite_error_is_shown(stage: Stage, visitor: Visitor) -> None:
    visitor.allow("409")
    stage.invite_problem = EnvironmentFailure("A client only uses the mesh.", advice="Ask a node of the mesh.")
    page = visitor.open(f"{stage.url}/#/join")
    page.get_by_role("button", name="Show an invite").click()
    expect(page.get_by_role("alert")).to_contain_text("Ask a node of the mesh.")


def test_join_view_shows_settings_for_programs(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/join")
    base = stage.api.removesuffix("/v1")
    for program, words in (
        ("goose", f"OPENAI_HOST={base}"),
        ("pi", f'"baseUrl": "{base}/v1"'),
        ("opencode", f'"baseURL": "{base}/v1"'),
        ("Claude Code", f"ANTHROPIC_BASE_URL={base}"),
        ("curl", f"curl {base}/v1/chat/completions"),
    ):
        page.get_by_role("button", name=program, exact=True).click()
        expect(page.get_by_role("region", name=re.compile(f"^{program}: ")).first).to_contain_text(words)


def test_idle_node_shows_commands_to_serve_and_join(visitor: Visitor) -> None:
    with staged(idle()) as stage:
        page = visitor.open(stage.url)
        expect(page.get_by_role("heading", name="This node serves no model")).to_be_visible()
        expect(page.locator("main")).to_contain_text("mesh-llm stop && mesh-llm --join -")
        page.get_by_role("link", name="Models").click()
        expect(page.get_by_role("heading", name="No model yet")).to_be_visible()
        page.get_by_role("link", name="Chat").click()
        expect(page.get_by_role("heading", name="No chat model yet")).to_be_visible()
        expect(page.get_by_role("button", name="Send")).to_be_disabled()


def test_page_reports_a_lost_daemon_and_reconnects(visitor: Visitor) -> None:
    visitor.allow("ERR_")
    with staged(mesh_of(3)) as stage:
        page, port = visitor.open(stage.url), stage.port
    expect(page.get_by_role("alert")).to_contain_text("workbench does not answer")
    again = mesh_of(2)
    again.port = port
    with staged(again):
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.locator("svg [role=button]")).to_have_count(2)


def test_first_view_loads_neither_the_chat_nor_formulas(stage: Stage, visitor: Visitor) -> None:
    visitor.open(stage.url)
    scripts = [url for url in visitor.requested if url.endswith(".js")]
    assert len(scripts) == 1
    script = FOLDER / "assets" / scripts[0].rpartition("/")[2]
    assert len(gzip.compress(script.read_bytes())) < 300_000
    assert not any("katex" in url.lower() or "chat-view" in url for url in visitor.requested)


def test_lost_daemon_is_not_shown_as_serving(visitor: Visitor) -> None:
    visitor.allow("ERR_")
    with staged(mesh_of(4)) as stage:
        page = visitor.open(stage.url)
        expect(page.get_by_role("button", name="workbench Qwen3-8B-Q4_K_M")).to_be_visible()
    expect(page.get_by_role("button", name="workbench not responding")).to_be_visible()
    expect(page.get_by_role("button", name="amber unverified")).to_be_visible()
    expect(page.locator("svg .dot.host.alive")).to_have_count(0)
    expect(page.locator(".head")).to_contain_text("last known: 4 nodes")
    expect(page.locator(".foot")).to_contain_text("does not answer")
    page.get_by_role("link", name="Nodes").click()
    expect(page.get_by_role("listitem").filter(has_text="this node")).to_contain_text("not responding")
    page.get_by_role("link", name="Models").click()
    expect(page.locator(".badge.good")).to_have_count(0)
    expect(page.locator("main")).to_contain_text("when this node answered last")


def test_dead_peer_is_shown_without_models_and_requests(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/nodes")
    amber = page.get_by_role("listitem").filter(has_text="amber")
    expect(amber).to_contain_text("slots busy")

    def dead(peers: tuple[PeerView, ...]) -> tuple[PeerView, ...]:
        return (replace(peers[0], status=PeerStatus.DEAD), *peers[1:])

    stage.peers(dead)
    expect(amber).to_contain_text("dead")
    expect(amber).to_contain_text("no model loaded")
    expect(amber).not_to_contain_text("busy")


def test_stopping_node_and_its_notices_are_shown(stage: Stage, visitor: Visitor) -> None:
    stage.notices = ("A member uses the old mesh secret.", "<b>This invite expired.</b>")
    page = visitor.open(stage.url)
    for text in stage.notices:
        expect(page.get_by_role("status").filter(has_text=text)).to_be_visible()
    page.get_by_role("button", name="Hide").first.click()
    expect(page.get_by_role("status").filter(has_text=stage.notices[0])).to_have_count(0)
    expect(page.get_by_role("status").filter(has_text=stage.notices[1])).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    stage.show(replace(stage.snapshot, stopping=True))
    expect(page.get_by_role("alert")).to_contain_text("workbench is stopping. It waits for 1 answer to end")


def test_commands_are_those_of_the_start_of_the_node(stage: Stage, visitor: Visitor) -> None:
    program = "/src/scripts/mesh-llm"
    stage.start = StartStatus(program=program, command=f"{program} --model m", elsewhere="scripts/mesh-llm")
    page = visitor.open(f"{stage.url}/#/join")
    expect(page.get_by_role("region", name="Command that allows other devices")).to_have_text(
        f"{program} stop && {program} --model m --listen-all"
    )
    page.get_by_role("button", name="Show an invite").click()
    expect(page.get_by_role("region", name="Command to join")).to_have_text(f"scripts/mesh-llm --join {HIDDEN_TOKEN}")
    expect(page.locator("main")).to_contain_text("in its folder of mesh-llm")


def test_theme_follows_the_system_until_it_is_set(stage: Stage, visit: Callable[..., Visitor]) -> None:
    page = visit(color_scheme="dark").open(stage.url)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(14, 16, 16)"
    page.get_by_role("button", name="Colours: system. Change").click()
    assert page.evaluate(ground) == "rgb(247, 247, 245)"
    page.reload()
    expect(page.get_by_role("button", name="Colours: light. Change")).to_be_visible()
    assert page.evaluate(ground) == "rgb(247, 247, 245)"


@pytest.mark.parametrize("view", VIEWS)
def test_view_fits_a_phone(view: str, visit: Callable[..., Visitor]) -> None:
    with staged(with_requests(mesh_of(30))) as stage:
        page = visit(viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True).open(
            f"{stage.url}/#/{view}"
        )
        page.get_by_role("link", name="Mesh").last.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        wide = page.eval_on_selector_all(
            "main *:not(svg *)",
            "all => all.filter((one) => one.getBoundingClientRect().right > 376 && "
            "!one.closest('pre, .table')).map((one) => one.outerHTML.slice(0, 120))",
        )
        assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_view_passes_axe(view: str, scheme: str, axe: str, visit: Callable[..., Visitor]) -> None:
    with staged(with_requests(mesh_of(30))) as stage:
        page = visit(color_scheme=scheme, bypass_csp=True).open(f"{stage.url}/#/{view}")
        if view in ("mesh", "nodes"):
            page.get_by_role("button", name=re.compile("^(workbench|amber)")).first.click()
            page.get_by_role("complementary").wait_for()
        if view == "requests":
            page.locator("tr", has_text="502").get_by_role("button").first.click()
            page.get_by_role("complementary").wait_for()
        if view == "join":
            page.get_by_role("button", name="Show an invite").click()
            page.get_by_role("img", name="The invite as a QR code").wait_for()
        page.evaluate(axe)
        assert serious(page) == []


def test_founder_of_a_mesh_is_idle_only_without_peers(visitor: Visitor) -> None:
    with staged(idle()) as stage:
        page = visitor.open(stage.url)
        expect(page.get_by_role("heading", name="This node serves no model")).to_be_visible()
        stage.peers(lambda peers: (peer(0, Random(0)),))
        expect(page.get_by_role("heading", name="This node serves no model")).to_have_count(0)
        expect(page.locator("svg [role=button]")).to_have_count(2)


def test_picture_of_300_nodes_ends_with_the_last_change(visitor: Visitor) -> None:
    with staged(mesh_of(300)) as stage:
        page = visitor.open(stage.url)
        expect(page.locator("svg [role=button]")).to_have_count(304)
        for round_ in range(20):

            def changed(peers: tuple[PeerView, ...], round_: int = round_) -> tuple[PeerView, ...]:
                return tuple(
                    replace(view, status=PeerStatus.SUSPECT if place % 20 == round_ else PeerStatus.ALIVE)
                    for place, view in enumerate(peers)
                )

            stage.peers(changed)
        expect(page.locator("svg [role=button].suspect")).to_have_count(14)
        expect(page.locator(".head")).to_contain_text("14 not responding")
