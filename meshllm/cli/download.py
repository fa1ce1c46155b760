"""`mesh-llm download`: fetching a model, and the draft that goes with it.

Law: this file only asks and shows; what is fetched, kept and verified is decided in `meshllm.models`. An interrupted
download says what was kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

# asyncio is imported where it runs: `--help` reads this file, and asyncio would take a third of its time.
from meshllm import paths

if TYPE_CHECKING:
    from rich.console import Console

    from meshllm.models.catalog.entry import Wanted
    from meshllm.models.library.local_model import LocalModel
    from meshllm.models.library.store import Store


def download(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name from the list, org/repo or org/repo:Q4_K_M at the Hugging Face hub, or an address there. "
            "Without it, the list is shown."
        ),
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Fetch the smaller model too that guesses ahead for it.")
    ] = False,
    fits: Annotated[bool, typer.Option("--fits", help="Of the list, only what fits this machine.")] = False,
    search: Annotated[
        str, typer.Option(metavar="WORDS", help="Of the list, only what these words are said of: coder, pictures, mit.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The list, or the models, as JSON.")] = False,
) -> None:
    """Fetch a model into the model folder, or list the models that are known by name."""
    from meshllm.errors import UsageError

    if name is None:
        if draft:
            raise UsageError("--draft goes with a model, but none is named.", advice="Name one: NAME --draft.")
        from meshllm.cli.catalog_table import show

        show(as_json=as_json, fits=fits, search=search)
        return
    if fits or search:
        raise UsageError("--fits and --search are about the list.", advice="Leave out the name, or the option.")
    import asyncio

    from meshllm.models.library.store import Store

    store = Store(paths.models())
    wanted, note = chosen(name, store, draft=draft)
    try:
        models = asyncio.run(fetch(wanted, store, note=note))
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. {kept(wanted, store)}", err=True)
        raise typer.Exit(130) from None
    _say(models, as_json=as_json)


def chosen(name: str, store: Store, *, draft: bool) -> tuple[list[Wanted], str]:
    """What is to be fetched, and what a person should know of how the name was understood.

    Raises what `models.resolve.resolve` raises, and UsageError where a draft is wanted and none is known.
    """
    from meshllm.errors import UsageError
    from meshllm.models.catalog.catalog import load
    from meshllm.models.catalog.entry import CatalogEntry
    from meshllm.models.catalog.resolve import resolve
    from meshllm.models.library import scan

    found = resolve(name, folder=store.folder, disk=lambda: scan.scan(store))
    if not draft:
        return [found.wanted], found.note
    known = isinstance(found.wanted, CatalogEntry)
    paired = load().get(found.wanted.draft) if isinstance(found.wanted, CatalogEntry) and found.wanted.draft else None
    if paired is None:
        why = "has none in the catalogue" if known else "is not in the catalogue, which says what goes with what"
        raise UsageError(
            f"No draft is known for {found.wanted.name}: it {why}.",
            advice="Leave out --draft. A small model of the same vocabulary on this disk is found by itself.",
        )
    return [found.wanted, paired], found.note


async def fetch(
    wanted: list[Wanted], store: Store, *, note: str = "", console: Console | None = None
) -> list[LocalModel]:
    """The models, fetched if need be, with progress on `console` (standard error unless given).

    Raises what `models.download.ensure` raises; when cancelled, what has arrived is kept.
    """
    from rich.console import Console as RichConsole

    from meshllm.cli.transfers import view
    from meshllm.machine.packages import PipFetcher
    from meshllm.models.transfer.ensure import ensure

    console = console or RichConsole(stderr=True)
    if note:
        console.print(note, markup=False, highlight=False)
    found = []
    seen = view(console)
    with seen:
        for number, model in enumerate(wanted):
            rest = wanted[number:]
            seen.expect(lambda rest=rest: _missing(rest, store))  # type: ignore[misc]
            found.append(await ensure(model, store, seen.report, packages=PipFetcher()))
    return found


def kept(wanted: list[Wanted], store: Store) -> str:
    """What an interrupted download has left, in a sentence."""
    from meshllm.models.library.inventory import manifest_of
    from meshllm.models.transfer.ensure import arrived
    from meshllm.util.format import megabytes

    unfinished = sum(arrived(model, store) for model in wanted)
    manifests = [manifest for model in wanted if (manifest := manifest_of(model, store)) is not None]
    whole = [file.name for manifest in manifests for file in manifest.all_files if store.is_verified(file)]
    told = [f"{megabytes(unfinished)} are kept"] if unfinished else []
    told += [f"complete: {', '.join(whole)}"] if whole else []
    if not told:
        return "Nothing had arrived that could be kept."
    return f"{'; '.join(told)}; the same command goes on from there."


def _missing(wanted: list[Wanted], store: Store) -> Mapping[str, int]:
    """The files that are still to come, by name, as far as they are known."""
    from meshllm.models.library.inventory import manifest_of

    manifests = [manifest for model in wanted if (manifest := manifest_of(model, store)) is not None]
    files = [file for manifest in manifests for file in manifest.all_files]
    return {file.name: file.size for file in files if not store.is_verified(file)}


def _say(models: list[LocalModel], *, as_json: bool) -> None:
    from meshllm.util.format import printable_message

    if as_json:
        told = [_facts(model) for model in models]
        typer.echo(json.dumps(told[0] if len(told) == 1 else told))
        return
    for model in models:
        more = f" and {len(model.files) - 1} more files" if len(model.files) > 1 else ""
        sees = f", with {model.projector.name} to see with" if model.projector is not None else ""
        typer.echo(printable_message(f"{model.name} is at {model.path}{more}{sees}"))


def _facts(model: LocalModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "path": str(model.path),
        "files": [str(path) for path in model.files],
        "projector": None if model.projector is None else str(model.projector),
        "size": model.size,
        "sha256": model.digest,
    }
