"""`scripts/bench console`: the console's page in a real browser: size, first paint, a large mesh that changes.

First paint is the browser's first contentful paint after navigation, with a new browser, a new daemon and an empty
profile. The large mesh is synthetic and served by the daemon's console server: every node changes at every event, while
the script clicks on nodes.
"""

from __future__ import annotations

import argparse
import gzip
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from meshllm.web.console.page_files import FOLDER

from . import report
from .children import Child, free_port, listening
from .native import BenchError
from .targets import MESH_LLM

if TYPE_CHECKING:
    from playwright.sync_api import Page

NODES = 300
CHANGES_PER_SECOND = 2
# The element to click in each view.
VIEWS = {"mesh": "svg [role=button]", "nodes": ".rows button.title"}
# The browser counts tasks of 50 ms and more as long: shorter ones are not noticeable.
LONG_TASK_MS = 50.0
WATCH = """
window.seen = { tasks: [], frames: [], inputs: [] }
new PerformanceObserver((list) => seen.tasks.push(...list.getEntries().map((one) => one.duration)))
    .observe({ type: 'longtask' })
new PerformanceObserver((list) => seen.inputs.push(...list.getEntries().map((one) => one.duration)))
    .observe({ type: 'event', durationThreshold: 16 })
let before = performance.now()
requestAnimationFrame(function frame(now) {
    seen.frames.push(now - before)
    before = now
    requestAnimationFrame(frame)
})
"""
# When something of the mesh is there to be read.
CONTENT = """
new MutationObserver((_, observer) => {
    if (document.querySelector('h1') === null) return
    window.shown = performance.now()
    observer.disconnect()
}).observe(document, { childList: true, subtree: true })
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--rounds", type=int, default=5, help="cold starts of the browser (default 5)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the mesh changes (default 30)")
    parser.add_argument("--json", action="store_true", help="print all measurements as JSON")


def run(options: argparse.Namespace) -> int:
    """Measure and print. Returns 0, or 1 where there is no browser or no page."""
    from tests.console.conftest import chromium

    program = chromium()
    if program is None:
        raise BenchError("there is no Chromium here: apt-get install chromium")
    if not (FOLDER / "index.html").exists():
        raise BenchError("the console's page is not built: scripts/console")
    measured = {
        "first_script_kb": _script_kb(set(re.findall(r"[^/]+\.js(?=\")", (FOLDER / "index.html").read_text()))),
        "script_kb": _script_kb({path.name for path in FOLDER.glob("assets/*.js")}),
        **_first_paint(program, options.rounds),
        **_large(program, options.seconds, "mesh"),
        **_large(program, options.seconds, "nodes"),
    }
    report.progress("")
    bars = [
        report.bar("script of the first view, compressed, kB", measured["first_script_kb"], 300, at_most=True),
        report.bar("first paint, cold, median ms", measured["paint_ms"], 1000, at_most=True),
        *(report.bar(f"longest task, {view}, ms", measured[f"{view}_longest_ms"], 200, at_most=True) for view in VIEWS),
    ]
    if options.json:
        print(report.as_json("console", bars, measured=measured, notes=[]))
    else:
        report.show("console", ["", "measured"], _rows(measured, options), bars, [])
    return 0


def _script_kb(names: set[str]) -> float:
    return sum(len(gzip.compress((FOLDER / "assets" / name).read_bytes(), 9)) for name in names) / 1000


@contextmanager
def _browsing(program: str) -> Iterator[Page]:
    """A page of a browser that has just been started."""
    from playwright.sync_api import sync_playwright

    from tests.console.conftest import ARGUMENTS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        try:
            yield browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        finally:
            browser.close()


def _first_paint(program: str, rounds: int) -> dict[str, float]:
    paints, contents = [], []
    for round_ in range(rounds):
        report.progress(f"first paint, {round_ + 1} of {rounds} ...")
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
            port, console = free_port(), free_port()
            command = [str(MESH_LLM), "--port", str(port), "--console", str(console)]
            with (
                Child("mesh-llm", command, Path(scratch), {"MESH_LLM_HOME": f"{scratch}/home"}) as child,
                _browsing(program) as page,
            ):
                child.wait_for("listening console", partial(listening, console))
                page.add_init_script(CONTENT)
                page.goto(f"http://localhost:{console}/")
                page.locator("h1").first.wait_for()
                paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
                while (painted := page.evaluate(paint)) is None:
                    time.sleep(0.02)
                paints.append(painted)
                contents.append(page.evaluate("shown"))
    return {"paint_ms": median(paints), "worst_paint_ms": max(paints), "content_ms": median(contents)}


def _large(program: str, seconds: float, view: str) -> dict[str, float]:
    from tests.console.meshes import mesh_of, staged

    rng = Random(7)
    with staged(mesh_of(NODES)) as stage, _browsing(program) as page:
        page.add_init_script(WATCH)
        page.goto(f"{stage.url}/#/{view}")
        clicked = page.locator(VIEWS[view])
        clicked.nth(NODES).wait_for()
        loading = page.evaluate("seen.tasks.splice(0)")
        page.evaluate("seen.frames.length = seen.inputs.length = 0")
        ends, changes = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            stage.peers(lambda peers: tuple(_changed(view, rng) for view in peers))
            changes += 1
            report.progress(f"{view} of {NODES} nodes, change {changes} ...")
            clicked.nth(changes % 9).click(force=True)
            page.wait_for_timeout(1000 / CHANGES_PER_SECOND)
        seen: dict[str, Any] = page.evaluate("seen")
    frames = sorted(seen["frames"])
    found = {
        "changes": changes,
        "longest_ms": max(seen["tasks"], default=0.0),
        "long_tasks": len(seen["tasks"]),
        "blocked_ms": sum(task - LONG_TASK_MS for task in seen["tasks"]),
        "frame_p99_ms": frames[int(len(frames) * 0.99)],
        "input_ms": max(seen["inputs"], default=0.0),
        "loading_ms": max(loading, default=0.0),
    }
    return {f"{view}_{name}": value for name, value in found.items()}


def _changed(view: Any, rng: Random) -> Any:
    """A node that is busier or less so, and further away or nearer."""
    loads = tuple(replace(load, active=rng.randint(0, 4)) for load in view.loads)
    return replace(view, loads=loads, rtt=None if view.rtt is None else rng.uniform(0.0004, 0.04))


def _rows(measured: dict[str, float], options: argparse.Namespace) -> list[list[str]]:
    captions = {
        "first_script_kb": "script of the first view, gzip, kB",
        "script_kb": "all script, gzip, kB",
        "paint_ms": f"first contentful paint, cold, median of {options.rounds}, ms",
        "worst_paint_ms": "the same, worst, ms",
        "content_ms": "the mesh is there to be read after, median, ms",
    }
    for view in VIEWS:
        captions |= {
            f"{view}_loading_ms": f"{view}, {NODES} nodes: longest task while loading, ms (0: none of 50 ms)",
            f"{view}_changes": f"  {CHANGES_PER_SECOND} changes of all nodes a second, a click after each: changes",
            f"{view}_longest_ms": "  longest task, ms (0: none of 50 ms)",
            f"{view}_long_tasks": "  tasks of 50 ms and more",
            f"{view}_blocked_ms": "  what of them was over 50 ms, in all, ms",
            f"{view}_frame_p99_ms": "  between two frames, 99th percentile, ms",
            f"{view}_input_ms": "  a click until the next paint, worst, ms",
        }
    return [[text, f"{measured[key]:.1f}"] for key, text in captions.items()]
