"""The Requests view in a real browser: the table, the filter, the timeline, and when it polls."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import Visitor
from tests.console.meshes import Stage, mesh_of, staged, with_requests

COUNT_POLLS = """
window.polls = 0
const sent = window.fetch
window.fetch = (url, ...rest) => {
  if (String(url).includes('/api/requests')) window.polls += 1
  return sent(url, ...rest)
}
"""


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A node of a mesh of 12 after 40 requests."""
    with staged(with_requests(mesh_of(12))) as made:
        yield made


def rows(page: Page) -> Locator:
    """The rows of the table."""
    return page.locator(".requests tbody tr")


def test_requests_view_lists_requests_and_filters_them(stage: Stage, visitor: Visitor) -> None:
    page = visitor.open(f"{stage.url}/#/requests")
    expect(rows(page)).to_have_count(40)
    expect(page.get_by_role("heading", name="Requests")).to_be_visible()
    expect(page.locator(".head")).to_contain_text("40 requests, 4 failed")
    first = page.locator(".requests tbody tr").first
    expect(first).to_contain_text("Qwen3-8B-Q4_K_M")
    expect(first).to_contain_text("200 answered")
    expect(first).to_contain_text("workbench")
    expect(first).to_contain_text(re.compile(r"\d+ \(\d+ cached\) \+ \d+"))
    page.get_by_label("Failed only").check()
    expect(rows(page)).to_have_count(4)
    page.get_by_label("Failed only").uncheck()
    search = page.get_by_label("Filter requests by id, model, node or error")
    search.fill(stage.requests[7].request_id[:16])
    expect(rows(page)).to_have_count(1)
    search.fill("tunnel to the peer")
    expect(rows(page)).to_have_count(5)
    search.fill("no such request")
    expect(page.locator("main")).to_contain_text("No request matches the filter.")


def test_requests_view_shows_the_timeline_of_a_request(stage: Stage, visitor: Visitor) -> None:
    request = stage.requests[1]  # failed at a peer, answered by the engine
    page = visitor.open(f"{stage.url}/#/requests")
    page.locator(".requests tbody tr").nth(1).click()
    details = page.get_by_role("complementary", name=f"Request {request.request_id}")
    expect(details).to_contain_text("The tunnel to the peer was closed.")
    attempts = details.locator(".timeline > li")
    expect(attempts).to_have_count(2)
    expect(attempts.nth(0)).to_contain_text("failed")
    expect(attempts.nth(0).get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(r"connect 12 ms · first byte")
    )
    expect(attempts.nth(1)).to_contain_text("2. workbench")
    expect(attempts.nth(1).locator(".stream")).to_have_count(1)
    assert page.url.endswith(f"#/requests/{request.request_id}")
    details.get_by_role("button", name="Copy the request id").click()
    expect(details.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == request.request_id
    details.get_by_role("button", name="Close").click()
    expect(page.get_by_role("complementary")).to_have_count(0)


def test_requests_view_works_with_the_keyboard(stage: Stage, visitor: Visitor) -> None:
    request = stage.requests[0]
    page = visitor.open(f"{stage.url}/#/requests")
    button = page.get_by_role("button", name=request.request_id)
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("complementary", name=f"Request {request.request_id}")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("complementary")).to_have_count(0)
    expect(button).to_be_focused()


def test_requests_view_opens_the_request_of_its_address(stage: Stage, visitor: Visitor) -> None:
    request = stage.requests[4]
    page = visitor.open(f"{stage.url}/#/requests/{request.request_id}")
    details = page.get_by_role("complementary", name=f"Request {request.request_id}")
    expect(details).to_contain_text("No target answered: the engine stopped.")
    expect(details).to_contain_text("502 failed")


def test_requests_view_shows_new_requests_and_polls_only_while_open(stage: Stage, visitor: Visitor) -> None:
    visitor.page.clock.install()
    # Counted by the page itself: the browser reports a request to the test after others, when it is slow.
    visitor.context.add_init_script(COUNT_POLLS)
    page = visitor.open(stage.url)
    expect(page.locator("svg [role=button]").first).to_be_visible()
    assert page.evaluate("window.polls") == 0
    page.get_by_role("link", name="Requests").click()
    expect(rows(page)).to_have_count(40)
    newest = replace(stage.requests[0], request_id="req_new", model="new-model")
    stage.requests = (newest, *stage.requests)
    expect(page.locator(".requests tbody tr").first).to_contain_text("new-model")
    page.get_by_role("link", name="Nodes").click()
    expect(page.get_by_role("heading", name="Nodes")).to_be_visible()
    asked = page.evaluate("window.polls")
    assert asked >= 2
    page.clock.fast_forward(60_000)
    assert page.evaluate("window.polls") == asked


def test_requests_view_without_requests_says_so(visitor: Visitor) -> None:
    with staged(mesh_of(1)) as stage:
        page = visitor.open(f"{stage.url}/#/requests")
        expect(page.get_by_role("heading", name="No requests yet")).to_be_visible()


def test_requests_view_on_a_phone_opens_and_closes_a_request(stage: Stage, visit: Callable[..., Visitor]) -> None:
    page = visit(viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True).open(f"{stage.url}/#/requests")
    page.locator(".requests tbody tr").nth(4).tap()
    details = page.get_by_role("complementary")
    expect(details).to_contain_text("502 failed")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    details.get_by_role("button", name="Close").click()
    expect(details).to_have_count(0)
