"""`mesh-llm models`: lists, shows, verifies and removes model files on this disk.

Names from files are printed without control characters. Nothing is removed that was not listed first.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshllm import paths
from meshllm.cli.flags import Commands
from meshllm.cli.model_text import context_text, item_facts
from meshllm.util.format import printable, printable_message

if TYPE_CHECKING:
    from meshllm.models.library.inventory import InventoryItem
    from meshllm.models.library.remove import Removal
    from meshllm.models.library.store import Store
    from meshllm.models.library.verify import FileVerification

app = Commands(help="Model files on this disk: list, show, verify and remove them.")
JSON = Annotated[bool, typer.Option("--json", help="Output JSON.")]

LEAST_COLUMNS = 20  # of text beside headings, however narrow the terminal
STYLES = {
    "verified": "green",
    "not-verified": "yellow",
    "partial": "yellow",
    "other-content": "bold yellow",
    "damaged": "bold red",
}


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: JSON = False) -> None:
    """List models on this disk, in the model folder and of other programs."""
    if context.invoked_subcommand is not None:
        return
    from meshllm.models.library.inventory import inventory

    items = inventory(_store())
    if as_json:
        typer.echo(json.dumps([item_facts(item) for item in items], indent=2))
        return
    # A model that was wanted once is not on the disk.
    items = [item for item in items if item.arrived or item.state.value != "partial"]
    if not items:
        typer.echo(f"There are no models in {paths.models()}. `mesh-llm download` lists models to download.")
    elif sys.stdout.isatty():
        _print_table(items)
    else:
        for item in items:
            reason = item.reason if item.state.value == "other-content" else ""
            typer.echo("  ".join(filter(None, [*_words(item), printable_message(reason)])))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A model on this disk or in the catalogue.")], as_json: JSON = False
) -> None:
    """Show a model's properties, files, and memory needs on this machine."""
    from meshllm.cli import model_page

    store = _store()
    page = model_page.look_up(name, store)
    if as_json:
        typer.echo(json.dumps(model_page.facts(page, store), indent=2))
        return
    told = model_page.page_text(page, store)
    width = max(len(key) for key in told)
    for key, value in told.items():
        # Lists are paths, digests and the like, which are copied whole.
        lines = value if isinstance(value, list) else _wrapped(value, width + 2)
        for place, line in enumerate(lines):
            typer.echo(f"{'' if place else key:<{width}}  {printable(line)}")


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models on this disk (default: all).")] = None,
    as_json: JSON = False,
) -> None:
    """Hash model files and compare them with their expected digests. Exits with status 1 if one differs."""
    from meshllm.models.library.inventory import FileState, inventory
    from meshllm.models.library.select import find
    from meshllm.models.library.verify import verify_item

    store = _store()
    everything = inventory(store)
    # Missing parts are no damage, unless the model was named.
    whole = [item for item in everything if item.state is not FileState.PARTIAL]
    items = [find(name, everything, store) for name in names] if names else whole
    told, sound = [], True
    with _Reading(sum(item.arrived for item in items)) as reading:
        for item in items:
            for proof in verify_item(item, store, reading.report):
                sound = sound and proof.sound
                told.append((item, proof))
                if not as_json:
                    reading.say(_verdict(item, proof))
    if as_json:
        typer.echo(json.dumps([_proof_facts(item, proof) for item, proof in told], indent=2))
    elif not told:
        typer.echo(f"There are no models to verify in {paths.models()}.")
    if not sound:
        raise typer.Exit(1)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A model in the model folder.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JSON = False,
) -> None:
    """Remove a model and its partial download from the model folder."""
    from meshllm.daemon.prompt_store import PromptStore
    from meshllm.daemon.wall_clock import system_time
    from meshllm.errors import UsageError
    from meshllm.models.library import remove as removal
    from meshllm.models.library.inventory import inventory
    from meshllm.models.library.select import find
    from meshllm.util.format import megabytes

    store = _store()
    everything = inventory(store)
    wanted = removal.plan(find(name, everything, store), everything, store)
    _refuse_if_served(wanted)
    if not as_json:
        for line in _removal_lines(wanted):
            typer.echo(line)
    if not yes:
        if as_json or not _is_interactive():
            raise UsageError(
                "Standard input is not a terminal, so the removal cannot be confirmed.",
                advice="Add --yes to remove it without confirmation.",
            )
        if not typer.confirm(f"Remove {printable(wanted.item.name)}?"):
            typer.echo("Nothing was removed.")
            raise typer.Exit(1)
    removal.remove(wanted, store)
    PromptStore(paths.home(), system_time).sweep()  # what its engine had computed
    if as_json:
        typer.echo(json.dumps(_removal_facts(wanted)))
    else:
        typer.echo(f"Removed {printable(wanted.item.name)}, {megabytes(wanted.freed)} freed.")


def _wrapped(text: str, indent: int) -> list[str]:
    """`text` wrapped to the terminal's width (80 columns without one) minus `indent`."""
    room = shutil.get_terminal_size().columns - indent
    return textwrap.wrap(text, max(room, LEAST_COLUMNS), break_long_words=False, break_on_hyphens=False) or [""]


def _store() -> Store:
    """The model folder. Raises UsageError if it cannot be read."""
    from meshllm.models.library.store import Store

    store = Store(paths.models())
    store.check_readable()
    return store


# -- listing


def _words(item: InventoryItem) -> list[str]:
    from meshllm.util.format import short_size

    header = item.model.header if item.model is not None else None
    quantization = header.quantization if header is not None else item.entry.quantization if item.entry else ""
    return [
        printable(item.name),
        short_size(item.size) if item.size else "",
        quantization,
        context_text(item.model.context_length) if item.model is not None and item.model.context_length else "",
        _state_text(item),
        _path_text(item),
    ]


def _state_text(item: InventoryItem) -> str:
    if item.state.value == "partial":
        if not item.arrived:
            return "not started"
        return f"{min(99, 100 * item.arrived // item.size)} %" if item.size else f"unfinished: {item.reason}"
    return item.state.value.replace("-", " ")


def _path_text(item: InventoryItem) -> str:
    """Path of the model: relative in the model folder, else absolute with "~" for the home."""
    from pathlib import Path

    if not item.files:
        return ""
    first, folder = item.files[0], paths.models()
    where = str(first.relative_to(folder)) if first.is_relative_to(folder) else str(first)
    if not first.is_relative_to(folder) and first.is_relative_to(Path.home()):
        where = f"~/{first.relative_to(Path.home())}"
    more = f" and {len(item.files) - 1} more" if len(item.files) > 1 else ""
    whose = f"{item.program}: " if item.program and not item.program.startswith("/") else ""
    return f"{whose}{printable(where)}{more}"


def _print_table(items: list[InventoryItem]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("quant", no_wrap=True)
    table.add_column("ctx", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("file", overflow="fold")
    for item in items:
        name, size, quantization, context, state, place = _words(item)
        style = STYLES[item.state.value]
        table.add_row(
            escape(name),
            size,
            escape(quantization),
            context,
            f"[{style}]{escape(state)}[/]",
            f"[dim]{escape(place)}[/]",
        )
    console.print(table)
    for item in items:
        if item.state.value in ("damaged", "other-content"):
            text = f"{item.name}: {item.reason}" if item.state.value == "other-content" else item.reason
            console.print(printable_message(text), style=STYLES[item.state.value], highlight=False, markup=False)
    console.print(f"The model folder is {paths.models()}.", style="dim", highlight=False, markup=False)


# -- verifying


class _Reading:
    """Shows the progress of hashing on a terminal."""

    def __init__(self, total: int) -> None:
        from rich import progress as rich
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar = rich.Progress(
            rich.TextColumn("reading {task.fields[file]}", markup=False),
            rich.BarColumn(bar_width=None),
            rich.DownloadColumn(),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total or None, file="")
        self._done: dict[object, int] = {}

    def __enter__(self) -> _Reading:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def report(self, path: object, done: int) -> None:
        self._done[path] = done
        name = printable(getattr(path, "name", ""))[:40]
        self._bar.update(self._task, completed=sum(self._done.values()), file=name)

    def say(self, text: str) -> None:
        """Print a line on standard output above the bar."""
        if self._console.is_terminal and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text)


def _verdict(item: InventoryItem, proof: FileVerification) -> str:
    """The result for a file, and how to repair it."""
    name, where = printable(item.name), printable(str(proof.path))
    if proof.verdict.value == "sound":
        return f"{name}: {where} is ok (sha256 {proof.sha256[:12]})"
    if proof.sound:
        return f"{name}: {where}: {printable(proof.reason)} (sha256 {proof.sha256[:12]})"
    repair = f"Download the rest with `mesh-llm download {name}`."
    if proof.verdict.value == "damaged":
        repair = f"Remove it with `mesh-llm models remove {name}`, then download it again: `mesh-llm download {name}`."
        if item.manifest is None:
            repair = f"Remove it with `mesh-llm models remove {name}`, and get it again from its source."
    if item.program:
        repair = f"It is not in the model folder: download it again with its program ({printable(item.program)})."
    told = "is incomplete" if proof.verdict.value == "missing" else "is DAMAGED"
    return f"{name}: {where} {told}: {printable(proof.reason.rstrip('.'))}. {repair}"


def _proof_facts(item: InventoryItem, proof: FileVerification) -> dict[str, Any]:
    return {
        "name": item.name,
        "path": str(proof.path),
        "verdict": proof.verdict.value,
        "sound": proof.sound,
        "sha256": proof.sha256,
        "expected": proof.expected,
        "reason": proof.reason,
    }


# -- removing


def _is_interactive() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin.isatty()


def _refuse_if_served(wanted: Removal) -> None:
    """Raises UsageError while the running node serves or downloads the model."""
    from meshllm.cli.machine_info import running
    from meshllm.errors import UsageError
    from meshllm.util.format import shell_word

    told = running()
    names = {wanted.item.name, *wanted.item.other_names}
    files = {str(path) for path in wanted.files}
    for model in told["models"] if told is not None else []:
        file, engine = model.get("file") or {}, model.get("engine") or {}
        drafts = {(engine.get("speculation") or {}).get("draft_model")} - {""}
        if model.get("phase") in ("stopped", "failed"):
            continue
        if model.get("name") in names or file.get("path") in files:
            raise UsageError(
                f"The running node serves {model['name']}.",
                advice=f"Drop it first: 'mesh-llm drop {shell_word(model['name'])}'.",
            )
        if drafts & names:
            raise UsageError(
                f"The running node uses {wanted.item.name} as the draft model of {model['name']}.",
                advice=f"Drop that first: 'mesh-llm drop {shell_word(model['name'])}'.",
            )


def _removal_lines(wanted: Removal) -> list[str]:
    from meshllm.util.format import megabytes

    lines = [f"remove  {printable(str(path))}" for path in wanted.files]
    lines += [f"remove  partial download of {printable(file.name)}" for file in wanted.unfinished]
    lines += [f"keep    {printable(str(path))}: {printable(reason)}" for path, reason in wanted.kept]
    return [*lines, f"{megabytes(wanted.freed)} in all"]


def _removal_facts(wanted: Removal) -> dict[str, Any]:
    return {
        "name": wanted.item.name,
        "removed": [str(path) for path in wanted.files],
        "unfinished": [file.name for file in wanted.unfinished],
        "kept": [{"path": str(path), "reason": reason} for path, reason in wanted.kept],
        "freed": wanted.freed,
    }
