"""Loading, dropping and downloading models on the page, and the demand that it shows: for the owner, and for others."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from meshllm.core.demand.levels import DemandLevel, keyed
from meshllm.core.membership.views import PeerView
from meshllm.core.snapshot import Snapshot
from meshllm.errors import EnvironmentFailure
from meshllm.web.http.access_control import AccessPolicy
from tests.console.conftest import Visitor, serious
from tests.console.meshes import Stage, mesh_of, staged
from tests.daemons import MODEL, Daemon, daemon
from tests.lan_address import lan_address

SERVED = "Qwen3-8B-Q4_K_M"
WAIT_SECONDS = 30.0
# Buttons that act on models, by their beginnings.
ACTS = re.compile("^(Load|Drop|Download|Try again)")


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Three nodes and a backend; two of the nodes serve one model."""
    with staged(mesh_of(3)) as made:
        yield made


def row(page: Page, model: str) -> Locator:
    return page.locator(".row.model").filter(has=page.locator(".name", has_text=model))


def library(page: Page) -> Locator:
    return page.get_by_role("region", name="Add a model to this node")


def opened(stage: Stage, visitor: Visitor) -> Page:
    page = visitor.open(f"{stage.url}/#/models")
    expect(library(page).get_by_role("heading", name="To download")).to_be_visible()
    return page


def status(node: Daemon) -> Any:
    with urllib.request.urlopen(node.owner_request("/api/status"), timeout=WAIT_SECONDS) as answer:
        return json.loads(answer.read())


def without_peers(stage: Stage) -> None:
    """No other node serves anything."""

    def idle(peers: tuple[PeerView, ...]) -> tuple[PeerView, ...]:
        return tuple(replace(view, record=replace(view.record, serves=()), loads=()) for view in peers)

    stage.peers(idle)


def test_owner_loads_a_model_of_the_disk_and_sees_its_progress(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    library(page).get_by_role("button", name="Load bge-m3", exact=True).click()
    expect(row(page, "bge-m3").get_by_role("progressbar")).to_have_attribute("aria-valuenow", "40")
    expect(page.get_by_role("status").filter(has_text="bge-m3 is being loaded.").first).to_be_visible()
    expect(library(page).get_by_role("button", name="Load bge-m3", exact=True)).to_have_count(0)
    assert stage.models.asked == [("load", "bge-m3")]


def test_owner_loads_what_is_typed_and_the_list_follows_the_text(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    library(page).get_by_label("Name, org/repo").fill("org/other:Q4_K_M")
    expect(library(page).locator("li")).to_have_count(0)
    library(page).get_by_role("button", name="Load what is typed org/other:Q4_K_M", exact=True).click()
    expect(row(page, "org/other:Q4_K_M")).to_have_count(1)
    library(page).get_by_label("Name, org/repo").fill("llama 70B")
    expect(library(page).locator("li")).to_have_count(1)
    expect(library(page).locator("li")).to_contain_text("needs 3 machines like this one · apache-2.0 · 40 % here")
    assert stage.models.asked == [("load", "org/other:Q4_K_M")]


def test_refused_act_says_what_to_do(stage: Stage, visitor: Visitor) -> None:
    stage.models.problem = EnvironmentFailure("It does not fit.", advice="Drop another model.")
    visitor.allow("409")
    page = opened(stage, visitor)
    row(page, "bge-m3").get_by_role("button", name="Load here bge-m3").click()
    notice = row(page, "bge-m3").get_by_role("alert")
    expect(notice).to_contain_text("It does not fit. Drop another model.")
    notice.get_by_role("button", name="Hide").click()
    expect(notice).to_have_count(0)


def test_drop_of_one_of_several_hosts_asks_nothing(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    row(page, SERVED).get_by_role("button", name=f"Drop {SERVED}").click()
    expect(row(page, SERVED).get_by_role("button", name=f"Load here {SERVED}")).to_be_visible()
    assert stage.models.asked == [("drop", SERVED)]


def test_drop_of_the_last_host_of_a_wanted_model_is_confirmed(stage: Stage, visitor: Visitor) -> None:
    without_peers(stage)
    page = opened(stage, visitor)
    drop = row(page, SERVED).get_by_role("button", name=f"Drop {SERVED}")
    drop.click()
    question = row(page, SERVED).get_by_role("alert")
    expect(question).to_contain_text(f"No other node serves {SERVED}, which is wanted (1 request now, 64 requests")
    expect(row(page, SERVED).get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    expect(question).to_have_count(0)
    expect(drop).to_be_focused()
    assert stage.models.asked == []
    drop.click()
    row(page, SERVED).get_by_role("button", name="Drop it").click()
    expect(row(page, SERVED).get_by_text("is dropped: answers in progress end first")).to_be_visible()
    assert stage.models.asked == [("drop", SERVED)]


def test_download_shows_its_progress_in_all_views_and_then_offers_to_load(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    library(page).get_by_role("button", name="Download Qwen3-32B", exact=True).click()
    entry = library(page).get_by_role("list", name="Downloads").get_by_role("listitem")
    expect(entry).to_contain_text("downloading: 2.0 GB of 4.0 GB, from amber")
    expect(entry.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
    expect(library(page).get_by_role("button", name="Download Qwen3-32B", exact=True)).to_be_disabled()
    page.get_by_role("link", name="Nodes", exact=True).click()
    page.get_by_role("link", name="Models", exact=True).click()
    expect(entry.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "50")
    stage.go_on()
    expect(entry).to_contain_text("Qwen3-32B is on the disk of this node.")
    entry.get_by_role("button", name="Load Qwen3-32B").click()
    expect(row(page, "Qwen3-32B")).to_have_count(1)
    assert stage.models.asked == [("download", "Qwen3-32B"), ("load", "Qwen3-32B")]


def test_download_can_be_stopped(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    library(page).get_by_role("button", name="Download Qwen3-32B", exact=True).click()
    entry = library(page).get_by_role("list", name="Downloads").get_by_role("listitem")
    entry.get_by_role("button", name="Stop the download").click()
    expect(entry.get_by_role("alert")).to_have_text("Stopped. What has arrived is kept.")
    assert stage.models.stopped.wait(WAIT_SECONDS)
    entry.get_by_role("button", name="Hide").click()
    expect(library(page).get_by_role("list", name="Downloads")).to_have_count(0)


def test_failed_download_says_what_to_do_and_can_be_tried_again(stage: Stage, visitor: Visitor) -> None:
    stage.models.problem = EnvironmentFailure("The disk is full.", advice="Free 3 GB.")
    stage.go_on()
    page = opened(stage, visitor)
    library(page).get_by_role("button", name="Download Qwen3-32B", exact=True).click()
    entry = library(page).get_by_role("list", name="Downloads").get_by_role("listitem")
    expect(entry.get_by_role("alert")).to_have_text("The disk is full. Free 3 GB.")
    stage.models.problem = None
    entry.get_by_role("button", name="Try again").click()
    expect(entry).to_contain_text("is on the disk of this node")


def test_failed_model_can_be_tried_again(stage: Stage, visitor: Visitor) -> None:
    (first, *others) = stage.snapshot.models
    failed = replace(first, file=first.file.FAILED, server=first.server.NONE, server_facts=None, reason="Damaged.")
    stage.show(replace(stage.snapshot, models=(failed, *others)))
    without_peers(stage)
    page = opened(stage, visitor)
    expect(row(page, SERVED)).to_contain_text("Damaged.")
    row(page, SERVED).get_by_role("button", name=f"Try again {SERVED}").click()
    expect(row(page, SERVED).get_by_role("progressbar")).to_have_count(1)
    assert stage.models.asked == [("load", SERVED)]


def test_visitor_without_the_token_sees_the_demand_and_no_button(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/models", token="")
    expect(page.get_by_role("region", name="Demand by model")).to_contain_text(SERVED)
    expect(page.get_by_role("button", name=ACTS)).to_have_count(0)
    expect(library(page)).to_have_count(0)
    assert not [url for url in visitor.requested if "/api/models/" in url or "/api/downloads" in url]


def test_other_device_sees_the_demand_and_no_button(visit: Callable[..., Visitor]) -> None:
    address = lan_address()
    key = "key-of-a-stage"
    made = mesh_of(3)
    made.policy, made.hosts = AccessPolicy(key), ("0.0.0.0",)
    with staged(made) as stage:
        visitor = visit(viewport={"width": 375, "height": 720}, is_mobile=True, has_touch=True)
        page = visitor.open(f"http://{address}:{stage.port}/#key={key}")
        page.get_by_role("link", name="Models", exact=True).click()
        expect(page.get_by_role("region", name="Demand by model")).to_contain_text(SERVED)
        expect(page.get_by_role("button", name=ACTS)).to_have_count(0)
        expect(library(page)).to_have_count(0)
        assert not [url for url in visitor.requested if "/api/models/" in url or "/api/downloads" in url]


def test_page_of_a_client_offers_no_model(stage: Stage, visitor: Visitor) -> None:
    assert stage.snapshot.mesh is not None
    client = replace(stage.snapshot.mesh, role=stage.snapshot.mesh.role.CLIENT, record=None)
    stage.show(Snapshot(mesh=client))
    page = visitor.open(f"{stage.url}/#/models")
    expect(row(page, SERVED)).to_have_count(1)
    expect(page.get_by_role("button", name=ACTS)).to_have_count(0)


def test_demand_says_who_serves_a_model_and_why_none_does(stage: Stage, visitor: Visitor) -> None:
    page = opened(stage, visitor)
    demand = page.get_by_role("region", name="Demand by model")
    served = demand.get_by_role("row").filter(has_text=SERVED)
    expect(served).to_contain_text("64")
    expect(served).to_contain_text("It is served.")
    share = served.get_by_role("img", name="100 % of the largest")
    expect(share.locator("span")).to_have_attribute("style", "width: 100%;")
    missing = demand.get_by_role("row").filter(has_text="Mixtral")
    lesser = missing.get_by_role("img", name=re.compile(r"^\d+ % of the largest$"))
    assert (share_box := lesser.locator("span").bounding_box() or {"width": 0})["width"] > 0
    assert share_box["width"] < (share.locator("span").bounding_box() or {"width": 0})["width"]
    expect(missing).to_contain_text("none")
    expect(missing).to_contain_text(
        "No node offers it from its disk. 'mesh-llm download Mixtral-8x22B-Q4_K_M' gets it."
    )
    served.get_by_role("link", name=SERVED).click()
    expect(page.locator(".row.model.chosen .name")).to_have_text(SERVED)


def test_nodes_view_says_what_each_node_does_next(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/nodes")
    birch = page.get_by_role("listitem").filter(has_text="birch")
    expect(birch).to_have_count(1)
    expect(birch).not_to_contain_text("takes")

    def asking(peers: tuple[PeerView, ...]) -> tuple[PeerView, ...]:
        first, second, *rest = peers
        wanted = replace(first.record, demand=keyed([DemandLevel("gemma", 3)]))
        holder = replace(second.record, on_disk=("gemma",), idle=False, serves=())
        return (replace(first, record=wanted), replace(second, record=holder), *rest)

    stage.peers(asking)
    expect(birch).to_contain_text("takes gemma now")
    birch.get_by_role("button").click()
    expect(page.get_by_role("complementary", name="Node birch")).to_contain_text("Nexttakes gemma now")
    page.get_by_role("listitem").filter(has_text="amber").get_by_role("button").click()
    details = page.get_by_role("complementary", name="Node amber")
    expect(details).to_contain_text(f"keeps {SERVED}: its owner asked for it")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_acts_pass_axe(stage: Stage, visit: Callable[..., Visitor], axe: str, scheme: str) -> None:
    without_peers(stage)
    visitor = visit(color_scheme=scheme, bypass_csp=True)
    visitor.allow("409")
    page = opened(stage, visitor)
    library(page).get_by_role("button", name="Download Qwen3-32B", exact=True).click()
    library(page).get_by_role("list", name="Downloads").get_by_role("progressbar").wait_for()
    row(page, SERVED).get_by_role("button", name=f"Drop {SERVED}").click()
    row(page, SERVED).get_by_role("alert").wait_for()
    stage.models.problem = EnvironmentFailure("It does not fit.", advice="Drop another model.")
    row(page, "bge-m3").get_by_role("button", name="Load here bge-m3").click()
    row(page, "bge-m3").get_by_role("alert").wait_for()
    page.evaluate(axe)
    assert serious(page) == []


def test_acts_fit_a_phone(stage: Stage, visit: Callable[..., Visitor]) -> None:
    without_peers(stage)
    page = opened(stage, visit(viewport={"width": 360, "height": 700}, is_mobile=True, has_touch=True))
    row(page, SERVED).get_by_role("button", name=f"Drop {SERVED}").click()
    library(page).get_by_role("button", name="Download Qwen3-32B", exact=True).click()
    library(page).get_by_role("list", name="Downloads").get_by_role("progressbar").wait_for()
    main = page.locator("main")
    assert main.evaluate("part => part.scrollWidth <= part.clientWidth + 1")
    for button in page.get_by_role("button", name=ACTS).all():
        box = button.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


@pytest.mark.engine
def test_owner_loads_and_drops_a_real_model_on_the_page(tmp_path: Path, visitor: Visitor) -> None:
    with daemon(tmp_path, "--node-name", "workbench") as node:
        page = visitor.open(f"{node.console_url}/#/models", token=node.token)
        library(page).get_by_label("Name, org/repo").fill("smollm2")
        library(page).get_by_role("button", name="Load what is typed smollm2", exact=True).click()
        badge = row(page, MODEL).locator(".badge")
        expect(badge).to_have_text("serving", timeout=120_000)
        assert [model["name"] for model in status(node)["models"]] == [MODEL]
        row(page, MODEL).get_by_role("button", name=f"Drop {MODEL}").click()
        expect(library(page).get_by_role("button", name=f"Load {MODEL}", exact=True)).to_be_visible()
        assert [dropped["model"] for dropped in status(node)["dropped"]] == [MODEL]
