"""`mesh-llm engine`: show, build, rebuild and remove builds of the inference engine, and unpack its source.

Progress is a bar on a terminal and plain lines elsewhere. Ctrl-C stops the build's processes; the next build resumes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshllm.cli.flags import Commands
from meshllm.util.format import duration, short_size

# asyncio is imported where it runs: `--help` reads this file, and asyncio would take a third of its time.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from meshllm.engine.build.builder import Engine, Layout
    from meshllm.engine.build.recipe import Recipe
    from meshllm.util.progress import Progress

app = Commands(help="Show, build or remove the inference engine (llama.cpp).")

_STAGE_LABELS = {
    "wait": "Waiting",
    "fetch": "Downloading source",
    "verify": "Verifying source",
    "unpack": "Unpacking source",
    "patch": "Applying patches",
    "configure": "Configuring",
    "compile": "Compiling",
    "install": "Installing",
}
_BYTE_STAGES = ("fetch", "verify", "unpack")
PLAIN_SECONDS = 10.0
"""Without a terminal: the shortest time between two lines of a stage."""


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the engine build, its compiler, options and patches, and whether it is current."""
    if context.invoked_subcommand is not None:
        return
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print_facts(facts)


@app.command()
def build() -> None:
    """Build the engine, unless it is built."""
    _run(again=False)


@app.command()
def rebuild() -> None:
    """Build the engine again from scratch. The old build stays in use until the new one is complete."""
    _run(again=True)


@app.command()
def clean(
    everything: Annotated[
        bool, typer.Option("--all", help="Also remove the current build and the downloaded source.")
    ] = False,
) -> None:
    """Remove old and interrupted builds."""
    from meshllm.engine.build import clean as cleaning
    from meshllm.engine.build import recipe
    from meshllm.engine.build.builder import layout

    current = None if everything else recipe.current()
    freed = 0
    for found in cleaning.removable(current, layout()):
        if reason := cleaning.remove(found, layout()):
            typer.echo(f"kept    {found.path}: {reason}")
            continue
        freed += found.size
        typer.echo(f"removed {found.path} ({short_size(found.size)})")
    typer.echo(f"{short_size(freed)} freed." if freed else "Nothing to remove.")


@app.command()
def unpack(
    directory: Annotated[Path, typer.Argument(help="A new directory.")],
    pristine: Annotated[bool, typer.Option("--pristine", help="Without the patches of mesh-llm.")] = False,
) -> None:
    """Unpack the patched source of the engine, to write patches (see llama.cpp/README.md)."""
    from meshllm.engine.build import pin, source
    from meshllm.engine.build.builder import layout
    from meshllm.engine.build.progress import silent
    from meshllm.errors import UsageError

    if directory.exists():
        raise UsageError(f"{directory} exists.", advice="Choose a directory that does not exist.")
    wanted = pin.read_source(pin.directory())

    async def work() -> None:
        archive = await source.obtain(wanted.pin, layout().downloads, silent, source.fetch_with_pip)
        chosen = pin.Source(wanted.pin, () if pristine else wanted.patches)
        await source.prepare_tree(chosen, archive, directory.absolute(), silent)

    import asyncio

    asyncio.run(work())
    typer.echo(f"llama.cpp {wanted.pin.commit} is in {directory}")


# -- building, with progress


async def build_with_progress(console: Console | None = None, *, again: bool = False) -> Engine:
    """The engine, built first if needed, with progress on `console` (default: standard error).

    Raises what `builder.ensure` raises.
    """
    from rich.console import Console as RichConsole

    from meshllm.engine.build import builder as engine_build

    console = console or RichConsole(stderr=True)
    started = time.monotonic()
    if not again and (engine := engine_build.find()):
        return engine
    if console.is_terminal:
        with _bar(console) as bar:
            engine = await engine_build.ensure(progress=_to_bar(bar), again=again)
    else:
        engine = await engine_build.ensure(progress=_to_lines(console), again=again)
    console.print(f"Engine ready after {duration(time.monotonic() - started)}: {engine.directory}", soft_wrap=True)
    return engine


def _bar(console: Console) -> Bar:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}", justify="right"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", style="dim"),
        console=console,
        expand=True,
    )


def _to_bar(bar: Bar) -> Callable[[Progress], None]:
    """Report to a bar with one line per stage; finished stages keep their duration."""
    tasks: dict[str, TaskID] = {}

    def report(step: Progress) -> None:
        stage = step.stage
        if stage not in tasks:
            for done in tasks.values():
                bar.update(done, total=1, completed=1, count="", detail="")
                bar.stop_task(done)
            tasks[stage] = bar.add_task(_STAGE_LABELS[stage], total=None, count="", detail="")
        bar.update(
            tasks[stage],
            total=step.total or None,
            completed=step.done,
            count=_count(step),
            detail=_shortened(step.detail, 28),
        )

    return report


def _to_lines(console: Console) -> Callable[[Progress], None]:
    last: dict[str, float] = {}

    def report(step: Progress) -> None:
        stage, now = step.stage, time.monotonic()
        finished = bool(step.total) and step.done == step.total and stage in ("compile", "fetch")
        if not finished and now - last.get(stage, -PLAIN_SECONDS) < PLAIN_SECONDS:
            return
        last[stage] = now
        line = " ".join(part for part in (_STAGE_LABELS[stage], _count(step), step.detail) if part)
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    return report


def _count(step: Progress) -> str:
    if not step.total:
        return ""
    if step.stage in _BYTE_STAGES:
        return f"{step.done / 1e6:.0f}/{step.total / 1e6:.0f} MB"
    return f"{step.done}/{step.total}"


def _run(*, again: bool) -> None:
    import asyncio

    from rich.console import Console as RichConsole

    from meshllm.engine.build import builder as engine_build

    console = RichConsole(stderr=True)
    if not again and (engine := engine_build.find()):
        console.print(f"The engine is already built: {engine.directory}", soft_wrap=True, highlight=False)
        return
    try:
        asyncio.run(build_with_progress(console, again=again))
    except KeyboardInterrupt:
        console.print("Interrupted. The next `mesh-llm engine build` resumes from here.")
        raise typer.Exit(130) from None


# -- output


def _facts() -> dict[str, Any]:
    """The engine of this machine, as values for JSON."""
    from dataclasses import asdict

    from meshllm.engine.build import installed
    from meshllm.engine.build import recipe as recipes
    from meshllm.engine.build.builder import layout

    recipe, cache = recipes.current(), layout()
    engine = installed.find(recipe, cache)
    others = [other.key for other in installed.every(cache) if engine is None or other.key != engine.key]
    return {
        "built": engine is not None,
        "wanted": _wanted(recipe),
        "engine": None
        if engine is None
        else {"key": engine.key, "directory": str(engine.directory), "current": engine.key == recipe.key}
        | asdict(engine.info),
        "other_builds": others,
        "interrupted": _interrupted(recipe, cache),
        "cache": str(cache.root),
    }


def _wanted(recipe: Recipe) -> dict[str, Any]:
    pin = recipe.source.pin
    return {
        "key": recipe.key,
        "source": f"{pin.package} {pin.version}",
        "sha256": pin.sha256,
        "commit": pin.commit,
        "patches": [patch.name for patch in recipe.source.patches],
        "compiler": recipe.compiler.version if recipe.compiler else None,
        "options": list(recipe.options),
        "accelerators": [
            {"name": found.name, "on": found.on, "why": found.why, "advice": found.advice}
            for found in recipe.accelerators
        ],
    }


def _interrupted(recipe: Recipe, cache: Layout) -> bool:
    return (cache.work / recipe.key).is_dir()


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    wanted, engine = facts["wanted"], facts["engine"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")

    def row(name: str, value: str) -> None:
        table.add_row(name, Text(value, overflow="fold"))

    if engine is None:
        row("engine", "not built" + (" (an interrupted build can be resumed)" if facts["interrupted"] else ""))
    else:
        row("engine", "built" + (", current" if engine["current"] else ", by a compiler that is no longer installed"))
        row("path", engine["directory"])
        row("built at", f"{engine['built_at']}, in {duration(engine['seconds'])}; {short_size(engine['size'])}")
    row("source", f"llama.cpp {wanted['commit']} of {wanted['source']}")
    row("patches", ", ".join(wanted["patches"]) or "none")
    row("compiler", (engine or wanted)["compiler"] or "none found")
    for found in wanted["accelerators"]:
        row(found["name"], f"{'on' if found['on'] else 'off'}: {found['why']}. {found['advice']}".rstrip(". ") + ".")
    row("options", " ".join((engine or wanted)["options"]))
    if facts["other_builds"]:
        row("old builds", f"{len(facts['other_builds'])}; remove them with `mesh-llm engine clean`")
    console = RichConsole(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    if engine is None:
        console.print("Build it with `mesh-llm engine build`; starting a model builds it too.", highlight=False)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
