"""`mesh-llm download` without a name: known models, and whether they fit this machine and are on its disk.

A table on a terminal, a line per model elsewhere, everything with `--json`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from meshllm import paths
from meshllm.cli.model_text import context_text, fit_text, parameters_text
from meshllm.util.format import printable, short_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from meshllm.core.memory.fit_preview import FitPreview
    from meshllm.core.memory.layer_placement import MemoryBudget
    from meshllm.models.catalog.entry import CatalogEntry
    from meshllm.models.library.inventory import ItemState

HERE = {"fits": "green", "less-context": "green", "split": "yellow", "too-big": "dim"}
ON_DISK = {"yes": "green", "no": "dim", "elsewhere": "green", "partial": "yellow", "not-verified": "yellow"}
# Licences are shown from this width on.
COLUMNS_WITH_LICENCE = 100
NOTHING = "No known model matches. Any hub model can be downloaded as org/repo."


@dataclass(frozen=True, slots=True)
class Row:
    """A catalogue model, its memory forecast and its state on this disk."""

    entry: CatalogEntry
    outlook: FitPreview
    state: ItemState

    @property
    def kind(self) -> str:
        """The kind of the model."""
        if self.entry.purpose.value != "generate":
            return {"embed": "embeddings", "rerank": "rerank"}[self.entry.purpose.value]
        return "text and pictures" if self.entry.vision else "text"


def show(*, as_json: bool, fits: bool = False, search: str = "") -> None:
    """Print the catalogue, filtered by fit and by words."""
    from meshllm.cli.machine_info import machine
    from meshllm.core.memory.devices import room

    facts = machine()
    given = room(facts)
    rows = [row for row in look(given) if (not fits or row.outlook.machines == 1) and _has(row, search)]
    if as_json:
        typer.echo(json.dumps([_facts(row) for row in rows], indent=2))
    elif not sys.stdout.isatty():
        for row in rows:
            typer.echo("  ".join(_words(row)))
        if not rows:
            typer.echo(NOTHING, err=True)
    else:
        from rich.console import Console

        console = Console()
        if rows:
            console.print(table(rows, licences=console.width >= COLUMNS_WITH_LICENCE))
        _print_legend(console, rows, given, devices=bool(facts.in_use))


def look(given: MemoryBudget) -> list[Row]:
    """All catalogue models, by kind and size."""
    from meshllm.models.catalog.catalog import load
    from meshllm.models.gguf.catalog_fit import outlook_of_entry
    from meshllm.models.library import other_apps
    from meshllm.models.library.inventory import catalog_state
    from meshllm.models.library.store import Store

    store, others = Store(paths.models()), list(other_apps.gguf_files())
    rows = [Row(entry, outlook_of_entry(entry, given), catalog_state(entry, store, others)) for entry in load().entries]
    kinds = ["text", "text and pictures", "embeddings", "rerank"]
    return sorted(rows, key=lambda row: (kinds.index(row.kind), row.entry.size, row.entry.name))


def _has(row: Row, search: str) -> bool:
    """Whether every word of the search occurs in the model's properties."""
    entry = row.entry
    said = " ".join((entry.name, *entry.aliases, row.kind, entry.license, entry.architecture, entry.quantization))
    said += f"{' tools' if entry.tools else ''}{' vision' if entry.vision else ''} {'dense' if entry.dense else 'moe'}"
    return all(word in said.casefold() for word in search.casefold().split())


# -- words


def disk_text(told: ItemState) -> str:
    """Whether the model is on this disk."""
    presence = told.presence.value
    if presence == "elsewhere":
        return f"elsewhere: {printable(told.program)}" if told.program else "elsewhere"
    return {"partial": f"{told.percent} %", "not-verified": "not verified"}.get(presence, presence)


def _words(row: Row) -> list[str]:
    """The columns of a plain line."""
    entry = row.entry
    return [
        entry.name,
        short_size(entry.size, about=entry.approximate),
        parameters_text(entry),
        entry.quantization,
        context_text(entry.context_length),
        row.kind + (" and tools" if entry.tools else ""),
        f"draft: {entry.draft}" if entry.draft else "no draft",
        entry.license,
        fit_text(row.outlook),
        f"on disk: {disk_text(row.state)}",
    ]


def _facts(row: Row) -> dict[str, Any]:
    from meshllm.cli.model_page import outlook_facts

    entry = row.entry
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "size": entry.size,
        "approximate": entry.approximate,
        "parameters": entry.parameters,
        "active_parameters": entry.active_parameters or entry.parameters,
        "architecture": entry.architecture,
        "quantization": entry.quantization,
        "context_length": entry.context_length,
        "purpose": entry.purpose.value,
        "vision": entry.vision,
        "tools": entry.tools,
        "draft": entry.draft,
        "license": entry.license,
        "repository": entry.repository,
        "fit": outlook_facts(row.outlook),
        "on_disk": row.state.presence.value,
        "percent": row.state.percent,
        "program": row.state.program,
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in entry.files],
    }


# -- the table


def table(rows: Sequence[Row], *, licences: bool) -> Table:
    """The table, with a heading per kind."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("name", overflow="ellipsis")  # the only one that gives way where there is no room for all
    for heading in ("size", "params", "quant", "ctx"):
        made.add_column(heading, justify="left" if heading == "quant" else "right", no_wrap=True)
    for heading in ("", "here", "on disk"):
        made.add_column(heading, no_wrap=True)
    if licences:
        made.add_column("licence", no_wrap=True)
    kind = ""
    for row in rows:
        if row.kind != kind:
            if kind:
                made.add_row()
            kind = row.kind
            made.add_row(f"[bold cyan]{kind}[/]")
        made.add_row(*_cells(row)[: len(made.columns)])
    return made


def _cells(row: Row) -> list[str]:
    entry, told, standing = row.entry, row.outlook, row.state
    here = HERE[told.outlook.value]
    disk = ON_DISK[standing.presence.value]
    short = {
        "less-context": context_text(told.size.context_length),
        "split": f"split {told.machines}",
        "fits": "fits",
        "too-big": "too big",
    }[told.outlook.value]
    # The owning program's name is shown; a path would not fit.
    known = bool(standing.program) and os.sep not in standing.program
    words = standing.program if known else disk_text(replace(standing, program=""))
    dim = told.machines > 1
    return [
        f"[dim]{entry.name}[/]" if dim else entry.name,
        short_size(entry.size, about=entry.approximate),
        parameters_text(entry),
        entry.quantization.removeprefix("UD-"),
        context_text(entry.context_length),
        ("t" if entry.tools else " ") + ("d" if entry.draft else " "),
        f"[{here}]{short}[/]",
        f"[{disk}]{words}[/]",
        f"[dim]{entry.license}[/]",
    ]


def _print_legend(console: Console, rows: Sequence[Row], given: MemoryBudget, *, devices: bool) -> None:
    from meshllm.util.format import gigabytes

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False, markup=False)

    if not rows:
        say(NOTHING)
        return
    memory = f"{gigabytes(given.host)} of memory"
    if devices:
        there = sum(accelerator.room for accelerator in given.accelerators)
        memory = f"{gigabytes(there)} on accelerators and {memory}"
    say("")
    say(f"here: with the {memory} that may be used now")
    say("  8k: fits with no more than 8k tokens of context   split 3: over 3 machines like this one")
    say("t: tool calls   d: has a draft model, downloaded with --draft")
    say("`mesh-llm download NAME` downloads a model; `mesh-llm models show NAME` shows its details.")
