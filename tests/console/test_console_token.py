"""The page without the token of the run, with one of an earlier run, and with the right one in its address."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import Visitor, serious
from tests.console.meshes import TOKEN, mesh_of, staged


def join_view(page: Page) -> None:
    """Go to the Join view, which offers neither an invite nor the key."""
    page.get_by_role("link", name="Join").click()
    expect(page.get_by_role("heading", name="Join")).to_be_visible()
    expect(page.get_by_role("button", name="Show an invite")).to_have_count(0)
    expect(page.get_by_role("region", name="Other devices")).to_have_count(0)


def test_page_without_the_token_is_read_only_and_says_how_to_open_it(visitor: Visitor) -> None:
    with staged(mesh_of(3)) as stage:
        page = visitor.open(stage.url, token="")
        expect(page.get_by_role("status").filter(has_text="without the token")).to_contain_text("mesh-llm console")
        join_view(page)
        # The address that `mesh-llm console` prints, in the same tab.
        page.evaluate("token => { location.hash = '#token=' + token }", TOKEN)
        expect(page.get_by_role("status").filter(has_text="token")).to_have_count(0)
        assert TOKEN not in page.url
        page.get_by_role("link", name="Join").click()
        expect(page.get_by_role("button", name="Show an invite")).to_be_visible()
        assert TOKEN not in page.content()


def test_page_with_the_token_of_an_earlier_run_says_so(visitor: Visitor) -> None:
    with staged(mesh_of(3)) as stage:
        page = visitor.open(stage.url, token="of-an-earlier-run")
        notice = page.get_by_role("status").filter(has_text="restarted since this page was opened")
        expect(notice).to_contain_text("mesh-llm console")
        join_view(page)


def test_page_takes_the_token_from_its_address_and_keeps_it_for_new_tabs(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    with staged(mesh_of(3)) as stage:
        page = visitor.page
        page.goto(f"{stage.url}/#token={TOKEN}")
        expect(page.get_by_role("heading", name="Mesh")).to_be_attached()
        assert TOKEN not in page.url
        tab = visitor.context.new_page()
        tab.goto(f"{stage.url}/#/join")
        expect(tab.get_by_role("button", name="Show an invite")).to_be_visible()
        assert not [url for url in visitor.requested if TOKEN in url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_notice_is_accessible(visit: Callable[..., Visitor], axe: str, scheme: str) -> None:
    with staged(mesh_of(3)) as stage:
        page = visit(color_scheme=scheme, bypass_csp=True).open(stage.url, token="")
        expect(page.get_by_role("status").filter(has_text="without the token")).to_be_visible()
        page.evaluate(axe)
        assert serious(page) == []
