"""A real browser for tests of the console's page: Debian's Chromium, driven by Playwright; else skipped aloud.

Law: whatever a test does, the page must not complain (console errors, exceptions), nor ask anybody but its own daemon.
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

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# No sandbox: tests run as root, on pages of our own. The rest: nothing but what the page does shall be on the network.
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Only matters when something is broken.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return os.environ.get("MESH_LLM_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Visitor:
    """A page, and what it complained of. `allow` what a test provokes: words that a complaint may have in it."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.asked: list[str] = []
        self._homes = {"localhost", "127.0.0.1"}
        self._complaints: list[str] = []
        self._allowed: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self._complaints.append(f"exception: {error}"))
        context.on("request", self._requested)

    def allow(self, words: str) -> None:
        """A complaint with these words in it is what the test is about."""
        self._allowed.append(words)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._complaints.append(f"{message.type}: {message.text}")

    def _requested(self, request: Request) -> None:
        self.asked.append(request.url)

    def open(self, url: str) -> Page:
        """The page at `url`, once it shows something. That is its daemon."""
        self._homes.add(urlsplit(url).hostname or "")
        self.page.goto(url)
        self.page.locator("h1").first.wait_for(state="attached")
        return self.page

    def complaints(self) -> list[str]:
        """What must not have been."""
        elsewhere = [
            f"asked {url[:200]}"
            for url in self.asked
            if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname not in self._homes
        ]
        found = [words for words in self._complaints if not any(allowed in words for allowed in self._allowed)]
        return found + elsewhere


# Per module: while Playwright runs, no other event loop can, and other modules have tests that need one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium (scripts/test does, where it may)")
    if not (FOLDER / "index.html").exists():
        pytest.skip("the console's page is not built: scripts/console")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors, each with a profile of its own; options are those of a browser context."""
    visitors = []

    def made(**options: object) -> Visitor:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        options.setdefault("reduced_motion", "reduce")  # whatever is shown is where it will stay
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        visitors.append(Visitor(context))
        return visitors[-1]

    yield made
    complaints = [complaint for visitor in visitors for complaint in visitor.complaints()]
    for visitor in visitors:
        visitor.context.close()
    assert complaints == []


@pytest.fixture
def visitor(visit: Callable[..., Visitor]) -> Visitor:
    """Somebody at a desk."""
    return visit()


@pytest.fixture(scope="session")
def axe() -> str:
    """The accessibility checker, as a script."""
    path = ROOT / "console" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip("axe-core is not here: scripts/console check fetches the page's packages")
    return path.read_text(encoding="utf-8")


def serious(page: Page) -> list[tuple[str, str, list[str]]]:
    """What `axe`, which `page` has loaded, finds that is serious or critical, and where."""
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        (one["id"], one["help"], [node["html"][:160] for node in one["nodes"][:3]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
