"""`python -m tests.console.pictures`: screenshots of all views for console/pictures.

The meshes are made up (`meshes.py`); the chat uses the real engine.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from meshllm.web.console.page_files import FOLDER
from tests.console.conftest import ARGUMENTS, ROOT, chromium
from tests.console.meshes import TOKEN, Stage, idle, mesh_of, split_over, staged, with_board, with_requests
from tests.daemons import MODEL, daemon

TARGET = ROOT / "console" / "pictures"
QUESTION = "Give me three reasons to share spare computers with friends, as a list."


@contextmanager
def visiting(browser: Browser, url: str, scheme: str, token: str = TOKEN) -> Iterator[Page]:
    """A page, after its heading is shown."""
    context = browser.new_context(
        viewport={"width": 1200, "height": 750},
        color_scheme=scheme,
        reduced_motion="reduce",  # type: ignore[arg-type]
    )
    context.add_init_script(f"localStorage.setItem('token', '{token}')")
    page = context.new_page()
    page.goto(url)
    page.locator("h1").first.wait_for(state="attached")
    page.evaluate("document.fonts.ready")
    yield page
    context.close()


def take(page: Page, name: str) -> None:
    """Save a screenshot."""
    page.evaluate("document.fonts.ready")
    page.screenshot(path=TARGET / f"{name}.png")
    print(TARGET / f"{name}.png")


def of_meshes(browser: Browser) -> None:
    """All views except the chat."""
    some, many, board = mesh_of(12), mesh_of(300), with_board(mesh_of(12), 9, numbered=False)
    board.board.hold("issue-16", 754, room="acme/engine")
    board.board.hold("docs of the tunnel", 5400, name="ben", node="birch", program="codex", room="acme/site")
    shots: list[tuple[Stage, str, str, str, str]] = [
        (some, "mesh", "light", "mesh", "svg [aria-label^=amber]"),
        (many, "mesh", "dark", "mesh-of-300", ""),
        (some, "nodes", "light", "nodes", ""),
        (some, "models", "dark", "models", ""),
        (with_requests(mesh_of(12)), "requests", "light", "requests", ".requests tbody tr:nth-child(2)"),
        (board, "blackboard", "dark", "blackboard", "text=2 replies"),
        (some, "join", "light", "join", "text=Show an invite"),
        (split_over(mesh_of(6)), "mesh", "light", "split", ""),
        (idle(), "mesh", "light", "idle", ""),
    ]
    for stage, view, scheme, name, click in shots:
        with staged(stage), visiting(browser, f"{stage.url}/#/{view}", scheme) as page:
            if click:
                page.click(click)
            take(page, name)
        stage.port = 0


def of_a_chat(browser: Browser) -> None:
    """A chat with the real engine, with desktop and phone viewports."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as home:
        arguments = ("--model", MODEL, "--ctx-size", "4096", "--node-name", "workbench")
        with daemon(Path(home), *arguments) as node:
            node.wait_until_serving()
            with visiting(browser, f"{node.console_url}/#/chat", "dark", node.token) as page:
                page.get_by_label("Message").fill(QUESTION)
                page.keyboard.press("Enter")
                page.locator("li.assistant-message:not(.streaming) .statistics").wait_for(timeout=120_000)
                page.locator(".thread").evaluate("thread => { thread.scrollTop = 0 }")
                page.mouse.move(0, 0)
                take(page, "chat")
                page.set_viewport_size({"width": 390, "height": 760})
                page.locator(".thread").evaluate("thread => { thread.scrollTop = 0 }")
                take(page, "chat-on-a-phone")


def main() -> int:
    """Take all screenshots."""
    program = chromium()
    if program is None or not (FOLDER / "index.html").exists():
        print("Chromium (apt-get install chromium) and the built page (scripts/console) are required", file=sys.stderr)
        return 1
    TARGET.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        of_meshes(browser)
        of_a_chat(browser)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
