"""`mesh-llm download`: downloads a model and its draft model, or lists the catalogue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

# asyncio is imported where it is used: it would add a third to the time of `--help`.
from meshllm import paths

if TYPE_CHECKING:
    from rich.console import Console

    from meshllm.cli.transfers import DownloadView
    from meshllm.models.catalog.entry import Wanted
    from meshllm.models.library.local_model import LocalModel
    from meshllm.models.library.store import Store


def download(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name from the list, org/repo or org/repo:Q4_K_M at the Hugging Face hub, or an address there. "
            "Without it, known models are listed."
        ),
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Also download its draft model for speculative decoding.")
    ] = False,
    fits: Annotated[bool, typer.Option("--fits", help="List only models that fit this machine.")] = False,
    search: Annotated[
        str, typer.Option(metavar="WORDS", help="List only models that match these words, e.g. coder, pictures, mit.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Output the list or the models as JSON.")] = False,
) -> None:
    """Download a model into the model folder, or list known models."""
    from meshllm.errors import UsageError

    if name is None:
        if draft:
            raise UsageError("--draft needs a model.", advice="Use: mesh-llm download NAME --draft")
        from meshllm.cli.catalog_table import show

        show(as_json=as_json, fits=fits, search=search)
        return
    if fits or search:
        raise UsageError(
            "--fits and --search only apply to the list of models.", advice="Leave out the name or the option."
        )
    import asyncio

    from meshllm.cli.node_download import node_port
    from meshllm.errors import UnknownModel
    from meshllm.models.library.store import Store
    from meshllm.models.transfer.request import requested_models

    store = Store(paths.models())
    port = node_port()
    wanted: list[Wanted] = []
    note = ""
    try:
        wanted, note = requested_models(name, store, draft=draft)
    except UnknownModel:
        if port is None:
            raise
    try:
        models = asyncio.run(fetch(name, wanted, store, note=note, draft=draft, port=port))
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. {kept(wanted, store)}", err=True)
        raise typer.Exit(130) from None
    _say(models, as_json=as_json)


async def fetch(
    name: str,
    wanted: list[Wanted],
    store: Store,
    *,
    note: str = "",
    draft: bool = False,
    port: int | None = None,
    console: Console | None = None,
) -> list[LocalModel]:
    """The models called `name`, downloaded if they are not on this disk; progress on `console` (default: stderr).

    First through the node whose console listens on `port`, if one runs, which asks its mesh first; then by this process
    from the hub. `wanted` is empty for a name that only the mesh can know. Raises what `requested_models` and `ensure`
    raise; when cancelled, what has arrived is kept.
    """
    from rich.console import Console as RichConsole

    from meshllm.cli.transfers import view
    from meshllm.machine.packages import PipFetcher
    from meshllm.models.transfer.ensure import ensure
    from meshllm.models.transfer.request import is_complete, missing_files, requested_models

    console = console or RichConsole(stderr=True)
    if note:
        console.print(note, markup=False, highlight=False)
    found = []
    seen = view(console)
    with seen:
        if not (wanted and is_complete(wanted, store)):
            await _through_node(name, store, seen, console, draft=draft, port=port)
        for number, model in enumerate(wanted or requested_models(name, store, draft=draft)[0]):
            rest = wanted[number:]
            seen.expect(lambda rest=rest: missing_files(rest, store))  # type: ignore[misc]
            found.append(await ensure(model, store, seen.report, packages=PipFetcher()))
    return found


async def _through_node(
    name: str, store: Store, view: DownloadView, console: Console, *, draft: bool, port: int | None
) -> None:
    """Download through the running node. Where that is not possible, says why; the hub is used next."""
    from meshllm.cli.node_download import download_through_node
    from meshllm.errors import DownloadFailed, NotRunning

    if port is None:
        text = "No node runs here, so the mesh cannot be asked: downloading from the hub."
        console.print(text, style="dim", markup=False, highlight=False)
        return
    try:
        await download_through_node(port, name, store.folder, view, draft=draft)
    except (DownloadFailed, NotRunning) as error:
        text = f"The running node could not download it: {error.message} Trying the hub."
        console.print(text, style="yellow", markup=False, highlight=False)


def kept(wanted: list[Wanted], store: Store) -> str:
    """What an interrupted download has kept, as a sentence."""
    from meshllm.models.transfer.ensure import resumable_bytes
    from meshllm.util.format import megabytes

    unfinished = sum(resumable_bytes(model, store) for model in wanted)
    manifests = [manifest for model in wanted if (manifest := store.manifest_of(model)) is not None]
    whole = [file.name for manifest in manifests for file in manifest.all_files if store.is_verified(file)]
    told = [f"{megabytes(unfinished)} are kept"] if unfinished else []
    told += [f"complete: {', '.join(whole)}"] if whole else []
    if not told:
        return "Nothing was downloaded yet."
    return f"{'; '.join(told)}; run the same command again to resume."


def _say(models: list[LocalModel], *, as_json: bool) -> None:
    from meshllm.util.format import printable_message

    if as_json:
        told = [_facts(model) for model in models]
        typer.echo(json.dumps(told[0] if len(told) == 1 else told))
        return
    for model in models:
        more = f" and {len(model.files) - 1} more files" if len(model.files) > 1 else ""
        sees = f", with the vision projector {model.projector.name}" if model.projector is not None else ""
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
