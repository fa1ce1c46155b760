"""Tables and verdicts on the terminal; plain text without one."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 130  # a pipe has no width; rich would fold at 80 columns


@dataclass(frozen=True)
class Bar:
    """A bar that was set, and what was measured. `met` is None where it could not be measured."""

    name: str
    measured: str
    wanted: str
    met: bool | None


def bar(name: str, value: float | None, wanted: float, *, at_most: bool, shape: str = "{:.3g}") -> Bar:
    """Compare a measured value with a limit; `shape` formats both."""
    sign = "<=" if at_most else ">="
    limit = f"{sign} {shape.format(wanted)}"
    if value is None:
        return Bar(name, "not measured", limit, None)
    return Bar(name, shape.format(value), limit, value <= wanted if at_most else value >= wanted)


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    load = os.getloadavg()[0]
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": round(load, 2),
    }


def progress(text: str) -> None:
    """Show the progress on one line of a terminal; without a terminal nothing."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}" + ("" if text else "\r"), end="", file=sys.stderr, flush=True)


def show(title: str, columns: list[str], rows: list[list[str]], bars: list[Bar], notes: list[str]) -> None:
    """Print a table, the bars and the notes."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else PLAIN_WIDTH, highlight=False)
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for each in bars:
        verdict = {True: "[green]met[/]", False: "[red]not met[/]", None: "[yellow]unknown[/]"}[each.met]
        console.print(f"  {verdict}  {each.name}: {each.measured} (wanted {each.wanted})")
    here = machine()
    busy = ": more than cores, so judge by the ratios alone" if here["load_average"] > (here["cores"] or 1) else ""
    for note in [*notes, f"{here['system']}, {here['cores']} cores, load average {here['load_average']}{busy}"]:
        console.print(f"  {note}", markup=False, style="dim")


def as_json(kind: str, bars: list[Bar], **parts: Any) -> str:
    """The same for a program."""
    whole = {"benchmark": kind, "machine": machine(), **parts, "bars": [asdict(each) for each in bars]}
    return json.dumps(whole, indent=2)
