"""`mesh-llm`: what the command line means. Parse, call, print; heavy things are imported only where they are used."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from meshllm.cli.flags import Commands
from meshllm.daemon.settings import DEFAULT_CONSOLE, DEFAULT_MAX_CLIENTS, DEFAULT_PORT
from meshllm.errors import InputError, MeshError

SERVE, MESH, NETWORK, OUTPUT = "What to serve", "The mesh", "Where to listen", "Output"

app = Commands(
    name="mesh-llm",
    help="Pools spare machines into a mesh that serves large language models behind one OpenAI-compatible API.",
    epilog="mesh-llm --model SmolLM2-135M-Instruct serves a model at http://localhost:9337/v1.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The command. Every `MeshError` ends in one message on standard error: exit status 2 for bad use, 1 otherwise."""
    try:
        app()
    except MeshError as error:
        give_up(error)
    except KeyboardInterrupt:
        sys.exit(130)


def give_up(error: MeshError) -> NoReturn:
    """Say what is wrong and what to do, and exit."""
    # A file's name may stand in it, and hold what moves a terminal's cursor.
    for words in (f"mesh-llm: {error.message}", f"  {error.advice}" if error.advice else ""):
        if words:
            shown = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in words)
            print(shown, file=sys.stderr)  # noqa: T201 - rich would take longer to import than to print
    sys.exit(2 if isinstance(error, InputError) else 1)


def _version(wanted: bool) -> None:
    if wanted:
        from meshllm import __version__

        typer.echo(f"mesh-llm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name from 'mesh-llm download', org/repo or org/repo:QUANT at the Hugging Face hub, or the path of "
            "a GGUF file. Repeatable: the first is served here, the others are wanted by the mesh, for a node with "
            "room.",
            rich_help_panel=SERVE,
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL[,key=VARIABLE]",
            help="Put the models of an OpenAI-compatible server into the pool. Repeatable.",
            rich_help_panel=SERVE,
        ),
    ] = None,
    ctx_size: Annotated[
        int | None,
        typer.Option(
            min=256,
            max=16 << 20,
            metavar="TOKENS",
            help="Context of each request; by default what the model and the memory allow, at most 32768.",
            rich_help_panel=SERVE,
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A smaller model of the same vocabulary that guesses ahead for the first --model; fetched if it is "
            "not here. By default one that is on this disk, if there is any.",
            rich_help_panel=SERVE,
        ),
    ] = None,
    no_draft: Annotated[
        bool, typer.Option("--no-draft", help="Let no other model guess ahead.", rich_help_panel=SERVE)
    ] = False,
    no_speculation: Annotated[
        bool,
        typer.Option(
            "--no-speculation",
            help="Guess nothing ahead, not even text that repeats; answers are the same, only slower.",
            rich_help_panel=SERVE,
        ),
    ] = False,
    max_vram: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=1 << 20,
            metavar="GB",
            help="Lend at most so much of the accelerators' memory; without any, of the computer's memory.",
            rich_help_panel=SERVE,
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Use only this accelerator ('mesh-llm doctor' names them), or none. Repeatable, or with commas.",
            rich_help_panel=SERVE,
        ),
    ] = None,
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Spread the layers of the first --model over several nodes even if it fits on this one.",
            rich_help_panel=SERVE,
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            metavar="N",
            help="Processor threads of each engine; by default what the engine finds best.",
            rich_help_panel=SERVE,
        ),
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INVITE|@FILE|-",
            help="Join a mesh: the invite that one of its nodes printed, or where it stands: a file or standard input "
            "(-), which keeps it out of the shell's history and the list of processes. Repeatable.",
            rich_help_panel=MESH,
        ),
    ] = None,
    client: Annotated[
        bool, typer.Option("--client", help="Only use the mesh from here; serve nothing.", rich_help_panel=MESH)
    ] = False,
    name: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="What other nodes call this one; by default the host's name.", rich_help_panel=MESH
        ),
    ] = "",
    max_clients: Annotated[
        int,
        typer.Option(min=0, max=4096, metavar="N", help="How many clients may use this node.", rich_help_panel=MESH),
    ] = DEFAULT_MAX_CLIENTS,
    share_models: Annotated[
        bool,
        typer.Option(
            "--share-models/--no-share-models",
            help="Whether other nodes of the mesh may have model files of this one.",
            rich_help_panel=MESH,
        ),
    ] = True,
    share_rate: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="MB/S",
            help="How fast model files may be given to other nodes; by default as fast as it goes, and slowly while a "
            "model here answers.",
            rich_help_panel=MESH,
        ),
    ] = None,
    bind_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="UDP port for other nodes; by default the one used last time, or any free one.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Port of the API (0: any free one).", rich_help_panel=NETWORK
        ),
    ] = DEFAULT_PORT,
    console: Annotated[
        int,
        typer.Option(
            min=0, max=65535, metavar="PORT", help="Port of the console (0: any free one).", rich_help_panel=NETWORK
        ),
    ] = DEFAULT_CONSOLE,
    listen_all: Annotated[
        bool,
        typer.Option(
            "--listen-all",
            help="Let other machines call the API, and see the console read-only, with a key; without this, only this "
            "one can.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let web pages of this origin (https://host) call the API. Repeatable.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which others, or a proxy for them, may call this node, with a key. Repeatable.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line, for services.", rich_help_panel=OUTPUT)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=OUTPUT)] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Start a node: serve models here and answer at localhost:9337."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    from meshllm import paths
    from meshllm.cli import join as joining
    from meshllm.cli import origin_host_args, start
    from meshllm.daemon.settings import Settings

    invites = joining.read(join or [])
    settings = Settings(
        home=paths.home(),
        models=tuple(model or ()),
        backends=start.backends(backend or []),
        port=port,
        console=console,
        listen_all=listen_all,
        allowed_origins=tuple(map(origin_host_args.origin, allow_origin or ())),
        allowed_hosts=tuple(map(origin_host_args.host, allow_host or ())),
        context=ctx_size,
        max_memory=None if max_vram is None else int(max_vram * 1e9),
        devices=tuple(name.strip() for text in device or () for name in text.split(",") if name.strip()),
        invites=invites,
        client=client,
        bind_port=bind_port,
        node_name=start.node_name(name),
        max_clients=max_clients,
        share_models=share_models,
        share_rate=None if share_rate is None else share_rate * 1e6,
        draft=draft,
        drafts=not no_draft,
        speculation=not no_speculation,
        split=split,
        threads=threads,
    )
    start.check(settings)
    start.run(settings, json=json, verbose=verbose)


def _refuse_options_before(context: typer.Context) -> None:
    """`mesh-llm --model X status` would ignore the option: say so instead."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name.replace("_", "-") for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise typer.BadParameter(
            f"--{given[0]} has no meaning for '{context.invoked_subcommand}': it belongs to starting a node."
        )


@app.command()
def stop(
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait for its end.")] = 30.0,
) -> None:
    """End the node that runs here (the one of MESH_LLM_HOME)."""
    from meshllm import paths
    from meshllm.daemon import pidfile
    from meshllm.errors import EnvironmentFailure

    try:
        ended = pidfile.stop(paths.home(), within=timeout)
    except TimeoutError as error:
        raise EnvironmentFailure(
            f"It was asked to stop, but {error}.", advice="Wait a little, or see what it does."
        ) from error
    typer.echo(f"Stopped mesh-llm (process {ended.pid}).")


@app.command()
def status(
    json: Annotated[bool, typer.Option("--json", help="The status as the API gives it.")] = False,
    console: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="PORT", help="Console port of the node to ask.")
    ] = None,
) -> None:
    """Show what a running node does."""
    from meshllm.cli.status import show

    show(console, as_json=json)


def _add_rooms() -> None:
    """Commands that live in files of their own. Those files import nothing heavy at their top either."""
    from meshllm.cli import doctor, download, engine, invite, models

    app.command("download")(download.download)
    app.command("doctor")(doctor.doctor)
    app.command("invite")(invite.invite)
    app.add_typer(engine.app, name="engine")
    app.add_typer(models.app, name="models")


_add_rooms()
if os.environ.get("MESH_LLM_DEBUG"):
    import faulthandler

    faulthandler.enable()
