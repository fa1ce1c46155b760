"""The command `mesh-llm` and its sub-commands. Heavy modules are imported in the functions that use them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from meshllm import paths
from meshllm.cli import start_options as options
from meshllm.cli.flags import Commands, LazyCommand
from meshllm.cli.standard_streams import drop_output, is_broken_pipe, is_failed_write, open_closed_streams, output_error
from meshllm.daemon.settings import DEFAULT_CONSOLE, DEFAULT_MAX_CLIENTS, DEFAULT_PORT
from meshllm.errors import EnvironmentFailure, InputError, MeshError, unusable_file
from meshllm.util.format import counted

if TYPE_CHECKING:
    from meshllm.daemon.pidfile import RunningInstance
    from meshllm.wire.mesh.invite import Invite

# Set to anything: tracebacks of crashes in C code (faulthandler) and of errors that are otherwise one message.
DEBUG_VARIABLE = "MESH_LLM_DEBUG"
# As a shell reports a program that SIGPIPE has ended.
BROKEN_PIPE_STATUS = 141
# As in `meshllm/agents/known/`, which is not read at each start.
AGENTS = ("aider", "claude", "cline", "codex", "continue", "goose", "opencode", "pi", "qwen")

app = Commands(
    lazy={
        "invite": LazyCommand("meshllm.cli.invite", "invite", asks_node=True),
        "load": LazyCommand("meshllm.cli.owner_models", "load", asks_node=True),
        "drop": LazyCommand("meshllm.cli.owner_models", "drop", asks_node=True),
        "ps": LazyCommand("meshllm.cli.engines", "ps", asks_node=True),
        "members": LazyCommand("meshllm.cli.members", "members", asks_node=True),
        "expel": LazyCommand("meshllm.cli.members", "expel", asks_node=True),
        "rotate-key": LazyCommand("meshllm.cli.members", "rotate_key", asks_node=True),
        "console": LazyCommand("meshllm.cli.console", "console"),
        "logs": LazyCommand("meshllm.cli.logs", "logs"),
        "doctor": LazyCommand("meshllm.cli.doctor", "doctor"),
        "download": LazyCommand("meshllm.cli.download", "download"),
        "models": LazyCommand("meshllm.cli.models", "app"),
        "engine": LazyCommand("meshllm.cli.engine", "app"),
        "debug": LazyCommand("meshllm.cli.debug", "app"),
        "blackboard": LazyCommand("meshllm.cli.blackboard", "app"),
        "agents": LazyCommand("meshllm.cli.agents", "agents"),
        **{name: LazyCommand("meshllm.cli.agents", "launcher", argument=name) for name in AGENTS},
    },
    name="mesh-llm",
    help="Pools spare machines into a mesh that serves large language models behind one OpenAI-compatible API.",
    epilog="mesh-llm --model SmolLM2-135M-Instruct serves a model at http://localhost:9337/v1.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command. A `MeshError` becomes a message on stderr and exit status 2 (wrong usage) or 1."""
    open_closed_streams()
    paths.name_missing_home()
    if os.environ.get(DEBUG_VARIABLE):
        import faulthandler

        faulthandler.enable()
    try:
        app()
    except MeshError as error:
        _check_output()
        give_up(error)
    except KeyboardInterrupt:
        _check_output()
        sys.exit(130)
    except SystemExit as end:
        # typer and rich turn a broken pipe into exit status 1.
        _check_output(end.__context__)
        raise
    except OSError as error:
        _check_output(error)
        if error.filename is None or os.environ.get(DEBUG_VARIABLE):
            raise
        give_up(unusable_file(error))
    _check_output()


def _check_output(error: BaseException | None = None) -> None:
    """Exit if the output could not be written. `error`: the error that ended the command, if any."""
    failure = output_error()
    if failure is None and is_failed_write(error):
        failure = error
    if is_broken_pipe(error) or is_broken_pipe(failure):
        drop_output()
        sys.exit(BROKEN_PIPE_STATUS)
    if failure is not None:
        give_up(
            EnvironmentFailure(
                f"The output cannot be written: {failure.strerror or failure}.",
                advice="Check the file, disk or terminal that it goes to.",
            )
        )


def give_up(error: MeshError) -> NoReturn:
    """Print what happened and what to do, and exit."""
    for text in (f"mesh-llm: {error.message}", f"  {error.advice}" if error.advice else ""):
        if text:
            # A file name in it may contain characters that move a terminal's cursor.
            shown = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
            with suppress(OSError):  # stderr is closed
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
    model: options.Model = None,
    serve_all: options.ServeAll = False,
    idle_unload: options.IdleUnload = None,
    on_demand: options.OnDemand = None,
    fetch_on_demand: options.FetchOnDemand = None,
    max_download: options.MaxDownload = None,
    backend: options.BackendUrl = None,
    ctx_size: options.CtxSize = None,
    chat_template: options.ChatTemplate = None,
    draft: options.Draft = None,
    no_draft: options.NoDraft = False,
    no_speculation: options.NoSpeculation = False,
    max_vram: options.MaxVram = None,
    device: options.Device = None,
    split: options.Split = False,
    threads: options.Threads = None,
    no_sandbox: options.NoSandbox = False,
    save_prompts: options.SavePrompts = True,
    worker: options.Worker = None,
    lease_cache: options.LeaseCache = None,
    join: options.Join = None,
    client: options.Client = False,
    node_name: options.NodeName = "",
    max_clients: options.MaxClients = DEFAULT_MAX_CLIENTS,
    only_from: options.OnlyFrom = None,
    name: options.WriterName = "",
    blackboard: options.Blackboard = True,
    blackboard_memory: options.BlackboardMemory = False,
    alias: options.Alias = None,
    tools: options.Tools = None,
    share: options.Share = options.ShareFiles.KNOWN,
    upload_limit: options.UploadLimit = None,
    bind_port: options.BindPort = None,
    port: options.ApiPort = DEFAULT_PORT,
    console: options.ConsolePort = DEFAULT_CONSOLE,
    ollama_port: options.OllamaPort = None,
    listen_all: options.ListenAll = False,
    allow_origin: options.AllowOrigin = None,
    allow_host: options.AllowHost = None,
    require_key: options.RequireKey = False,
    json: options.Json = False,
    verbose: options.Verbose = False,
    until_detached: options.UntilDetached = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Start a node: serve models and answer the API at localhost:9337."""
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    from meshllm.cli import join as join_option
    from meshllm.cli import origin_host_args, start
    from meshllm.cli.start_command import start_command
    from meshllm.daemon.settings import Settings

    def is_member(invite: Invite, now: float) -> bool:
        from meshllm.daemon import mesh_choice  # slow to import, and needed for expired invites only

        return mesh_choice.is_member(paths.home(), invite, now)

    notices: list[str] = []
    invites = join_option.read(join or [], is_member=is_member, say=notices.append)
    settings = Settings(
        home=paths.home(),
        models=tuple(model or ()),
        backends=start.backends(backend or []),
        port=port,
        console=console,
        ollama_port=ollama_port,
        listen_all=listen_all,
        allowed_origins=tuple(map(origin_host_args.origin, allow_origin or ())),
        allowed_hosts=tuple(map(origin_host_args.host, allow_host or ())),
        require_key=require_key,
        only_from=tuple(map(origin_host_args.node_id_start, only_from or ())),
        aliases=start.aliases(alias or []),
        declared_tools=start.declared_tools(tools or []),
        context=ctx_size,
        max_memory=None if max_vram is None else int(max_vram * 1e9),
        devices=tuple(name.strip() for text in device or () for name in text.split(",") if name.strip()),
        invites=invites,
        notices=tuple(notices),
        client=client,
        bind_port=bind_port,
        node_name=start.node_name(node_name),
        writer_name=start.writer_name(name, os.environ),
        blackboard=blackboard,
        board_memory=blackboard_memory,
        max_clients=max_clients,
        share=share.value,
        upload_limit=None if upload_limit is None else upload_limit * 1e6,
        draft=draft,
        drafts=not no_draft,
        speculation=not no_speculation,
        split=split,
        threads=threads,
        sandbox=not no_sandbox,
        save_prompts=save_prompts,
        worker=worker,
        lease_cache=None if lease_cache is None else int(lease_cache * 1e9),
        serve_all=serve_all,
        idle_unload=None if idle_unload is None else idle_unload * 60,
        on_demand=on_demand,
        fetch_on_demand=fetch_on_demand,
        max_download=None if max_download is None else int(max_download * 1e9),
        chat_template=None if chat_template is None else chat_template.expanduser().absolute(),
        until_detached=until_detached,
        command=start_command(sys.argv, os.environ),
    )
    start.check(settings)
    start.run(settings, json=json, verbose=verbose)


def _refuse_options_before(context: typer.Context) -> None:
    """Raise BadParameter for `mesh-llm --model X status`, where the option would have no effect."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name.replace("_", "-") for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise typer.BadParameter(
            f"--{given[0]} starts a node and has no effect on '{context.invoked_subcommand}'. Leave it out, or put the "
            "command's own options behind its name."
        )


NodePort = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, metavar="PORT", help="Console port of the node to ask. Default: the one of MESH_LLM_HOME."
    ),
]


@app.command()
def stop(
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait for the node to end.")
    ] = 30.0,
) -> None:
    """Stop the node that runs with this MESH_LLM_HOME."""
    from meshllm.daemon import pidfile

    try:
        ended = pidfile.stop(paths.home(), within=timeout, on_wait=_show_stopping)
    except TimeoutError as error:
        raise EnvironmentFailure(
            f"The node was asked to stop, but {error}.",
            advice="Wait a little and ask again, or see what it does with 'mesh-llm logs'.",
        ) from error
    typer.echo(f"Stopped mesh-llm (process {ended.pid}).")


def _show_stopping(instance: RunningInstance) -> None:
    """Say what the node waits for. Also where it does not answer any more."""
    from meshllm.cli.console_client import ask

    answers = 0
    with suppress(MeshError, ValueError, KeyError, TypeError):
        import orjson

        _, text = ask(instance.console, "GET", "/api/status", within=3.0)
        answers = sum(load["active"] for load in orjson.loads(text)["load"])
    waits = f" {counted(answers, 'answer')} in progress: waiting some seconds for the end." if answers else ""
    typer.echo(f"mesh-llm (process {instance.pid}) is stopping.{waits}")


@app.command(asks_node=True)
def status(
    json: Annotated[bool, typer.Option("--json", help="The status as the API gives it.")] = False,
    node_port: NodePort = None,
) -> None:
    """Show the state of a running node."""
    from meshllm.cli.status import show

    show(node_port, as_json=json)
