"""Fixtures for browser tests of the console page: Chromium driven by Playwright; skipped if there is no Chromium.

Invariants: in every test, the page logs no error or warning, raises no exception, and sends no request to another host.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from meshllm.web.console.page_files import FOLDER
from tests.console.meshes import TOKEN

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# No sandbox, because tests run as root; no background traffic of the browser itself.
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Upper bound of a wait, in ms.
TIMEOUT_MS = 30_000
expect.set_options(timeout=TIMEOUT_MS)


def chromium() -> str | None:
    """Path of the browser, or None."""
    return os.environ.get("MESH_LLM_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Visitor:
    """A browser page, with its problems: console errors, exceptions and requests to other hosts."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.page: Page = context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.requested: list[str] = []
        self._hosts = {"localhost", "127.0.0.1"}
        self._problems: list[str] = []
        self._allowed: list[str] = []
        self.page.on("console", self._log)
        self.page.on("pageerror", lambda error: self._problems.append(f"exception: {error}"))
        context.on("request", self._requested)

    def allow(self, text: str) -> None:
        """Ignore problems that contain this text, because the test provokes them."""
        self._allowed.append(text)

    def _log(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._problems.append(f"{message.type}: {message.text}")

    def _requested(self, request: Request) -> None:
        self.requested.append(request.url)

    def open(self, url: str, token: str = TOKEN) -> Page:
        """Open the page at `url` and wait for its heading; its host is the page's daemon. `token`: of the daemon's run,
        as an earlier tab has stored it."""
        self.context.add_init_script(f"if (location.hostname === 'localhost') localStorage.setItem('token', '{token}')")
        self._hosts.add(urlsplit(url).hostname or "")
        self.page.goto(url)
        self.page.locator("h1").first.wait_for(state="attached")
        return self.page

    def problems(self) -> list[str]:
        """All problems that were not allowed."""
        other_hosts = [
            f"requested {url[:200]}"
            for url in self.requested
            if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname not in self._hosts
        ]
        found = [text for text in self._problems if not any(allowed in text for allowed in self._allowed)]
        return found + other_hosts


# Per module: no other event loop can run while Playwright runs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    program = chromium()
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    if not (FOLDER / "index.html").exists():
        pytest.skip("the console page is not built: scripts/console")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors with separate profiles; the options are those of a browser context."""
    visitors = []

    def made(**options: object) -> Visitor:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        options.setdefault("reduced_motion", "reduce")  # no animations
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        visitors.append(Visitor(context))
        return visitors[-1]

    yield made
    problems = [problem for visitor in visitors for problem in visitor.problems()]
    for visitor in visitors:
        visitor.context.close()
    assert problems == []


@pytest.fixture
def visitor(visit: Callable[..., Visitor]) -> Visitor:
    """A visitor with a desktop viewport."""
    return visit()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of the accessibility checker axe."""
    path = ROOT / "console" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip("axe-core is not installed: scripts/console check")
    return path.read_text(encoding="utf-8")


def serious(page: Page) -> list[tuple[str, str, list[str]]]:
    """Serious and critical findings of axe, which `page` must have loaded: id, help text, HTML."""
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        (one["id"], one["help"], [node["html"][:160] for node in one["nodes"][:3]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
