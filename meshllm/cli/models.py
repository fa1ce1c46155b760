"""`mesh-llm download`: the catalogue as a table, and fetching with a bar that moves.

Law: this file only shows; what is fetched, kept and verified is decided in `meshllm.models`. On a terminal there is a
bar, elsewhere plain lines, and an interrupted download says what was kept.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

# asyncio is imported where it runs: `--help` reads this file, and asyncio would take a third of its time.
from meshllm import paths

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from meshllm.models.entry import CatalogEntry
    from meshllm.models.local import LocalModel
    from meshllm.models.progress import Progress
    from meshllm.models.store import Store


def download(
    name: Annotated[str | None, typer.Argument(help="A name from the list; without it, the list is shown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The list, or the model, as JSON.")] = False,
) -> None:
    """Fetch a model into the model folder, or list the models that are known by name."""
    if name is None:
        show_catalog(as_json)
        return
    import asyncio

    try:
        model = asyncio.run(fetch_with_progress(name))
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. {_kept(name)}", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(
            json.dumps({"name": model.name, "path": str(model.path), "size": model.size, "sha256": model.digest})
        )
    else:
        typer.echo(f"{model.name} is at {model.path}")


async def fetch_with_progress(name: str, console: Console | None = None) -> LocalModel:
    """The model called `name` (a catalogue name or a path), fetched first if need be, with progress on `console`.

    Progress goes to standard error unless a console is given. Raises what `models.download.ensure` and
    `models.resolve.resolve` raise; when cancelled, what has arrived is kept.
    """
    from rich.console import Console as RichConsole

    from meshllm.machine.packages import PipFetcher
    from meshllm.models.download import ensure
    from meshllm.models.resolve import resolve
    from meshllm.models.store import Store

    store = Store(paths.models())
    found = resolve(name, folder=store.folder)
    console = console or RichConsole(stderr=True)
    if found.note:
        console.print(found.note, markup=False, highlight=False)
    view: _View = _Bar(console) if console.is_terminal else _Lines(console)
    with view:
        return await ensure(found.wanted, store, view.report, packages=PipFetcher())


def _kept(name: str) -> str:
    from meshllm.errors import MeshError
    from meshllm.models.download import arrived
    from meshllm.models.resolve import resolve
    from meshllm.models.store import Store, megabytes

    store = Store(paths.models())
    try:
        wanted = resolve(name, folder=store.folder).wanted
    except MeshError:
        return ""
    kept = arrived(wanted, store)
    if not kept:
        return "Nothing had arrived that could be kept."
    return f"{megabytes(kept)} are kept; the same command goes on from there."


# -- the list


def show_catalog(as_json: bool) -> None:
    """The catalogue: a table on a terminal, lines or JSON elsewhere."""
    from meshllm.models.catalog import load
    from meshllm.models.store import Store, megabytes

    store, entries = Store(paths.models()), load().entries
    if as_json:
        typer.echo(json.dumps([_facts(entry, store) for entry in entries], indent=2))
        return
    if not sys.stdout.isatty():
        for entry in entries:
            typer.echo(f"{entry.name}  {megabytes(entry.size)}  {_state(entry, store)}  {entry.license}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", style="bold", no_wrap=True)
    for heading in ("size", "params", "quant", "context"):
        table.add_column(heading, justify="right")
    table.add_column("on disk")
    table.add_column("license")
    for entry in entries:
        state = _state(entry, store)
        style = {"yes": "green", "no": "dim"}.get(state, "yellow")
        table.add_row(
            entry.name,
            megabytes(entry.size),
            _short(entry.parameters),
            entry.quantization,
            f"{entry.context_length:,}",
            f"[{style}]{state}[/{style}]",
            entry.license,
        )
    console = Console()
    console.print(table)
    console.print(
        f"`mesh-llm download NAME` fetches one into {store.folder}.", style="dim", highlight=False, markup=False
    )


def _state(entry: CatalogEntry, store: Store) -> str:
    """ "yes", "no", or what is there of it."""
    if entry.files and all(store.is_verified(file) for file in entry.files):
        return "yes"
    if entry.files and all(store.has_size(file) for file in entry.files):
        return "not verified"
    arrived = sum(file.size if store.has_size(file) else store.arrived(file) for file in entry.files)
    return f"{min(99, 100 * arrived // entry.size)} %" if arrived else "no"


def _facts(entry: CatalogEntry, store: Store) -> dict[str, object]:
    return {
        "name": entry.name,
        "size": entry.size,
        "parameters": entry.parameters,
        "architecture": entry.architecture,
        "quantization": entry.quantization,
        "context_length": entry.context_length,
        "license": entry.license,
        "on_disk": _state(entry, store) == "yes",
        "files": [{"path": str(store.path(file)), "size": file.size, "sha256": file.sha256} for file in entry.files],
    }


def _short(count: int) -> str:
    """134515008 -> "135M"."""
    for unit, letter in ((10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


# -- views


class _View(Protocol):
    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def report(self, progress: Progress) -> None: ...


_WORDS = {
    "waiting": "waiting for another download of it",
    "connecting": "connecting",
    "downloading": "downloading",
    "extracting": "unpacking",
    "verifying": "verifying",
}


class _Bar:
    """One moving line on a terminal."""

    def __init__(self, console: Console) -> None:
        from rich import progress as rich

        tight = [rich.DownloadColumn(), rich.TransferSpeedColumn(), rich.TimeRemainingColumn()]
        self._bar: RichProgress = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=None),
            *tight,
            console=console,
            transient=True,
            expand=True,
        )
        self._console = console
        self._task: TaskID | None = None
        self._now = ("", "")

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def report(self, progress: Progress) -> None:
        if progress.stage not in _WORDS:
            if progress.note:
                self._console.print(progress.note, style="yellow", markup=False, highlight=False)
            return
        if self._task is None or (progress.stage, progress.source) != self._now:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._now = (progress.stage, progress.source)
            if progress.source and progress.stage == "connecting":
                self._console.print(f"{progress.file} from {progress.source}", markup=False, highlight=False)
            words = _WORDS[progress.stage]
            self._task = self._bar.add_task(words, total=progress.total or None, completed=progress.done)
        self._bar.update(self._task, completed=progress.done, total=progress.total or None)


class _Lines:
    """A line for each stage, and for each tenth of a download."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ("", "", -1)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def report(self, progress: Progress) -> None:
        if progress.stage not in _WORDS:
            if progress.note:
                self._print(progress.note)
            return
        tenth = 10 * progress.done // progress.total if progress.total and progress.stage == "downloading" else 0
        if (now := (progress.stage, progress.source, tenth)) == self._last:
            return
        self._last = now
        source = f" from {progress.source}" if progress.source else ""
        share = f" {10 * tenth} %" if progress.stage == "downloading" else ""
        self._print(f"{progress.file}: {_WORDS[progress.stage]}{source}{share}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
