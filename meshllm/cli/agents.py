"""`mesh-llm goose`, `claude` and so on, and `mesh-llm agents`: start coding agents on the mesh."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshllm import paths
from meshllm.daemon.settings import DEFAULT_CONSOLE, DEFAULT_PORT
from meshllm.errors import EnvironmentFailure, UsageError

if TYPE_CHECKING:
    from meshllm.agents.attachment import Attachment
    from meshllm.agents.launcher import Launcher
    from meshllm.agents.node import NodeAddress, StartedNode
    from meshllm.core.routing.agent_choice import AgentModel

Arguments = Annotated[list[str] | None, typer.Argument(metavar="-- ARGS", help="Arguments of the agent, behind '--'.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The model. Default: the best one for agents.")
]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, metavar="PORT", help=f"Port of the node's API. Default: {DEFAULT_PORT}."),
]
Join = Annotated[
    list[str] | None,
    typer.Option(
        "--join",
        metavar="INVITE",
        help="The mesh of a node that is started for the agent: an invite, @FILE, or - for standard input. Default: "
        "the mesh that this node was in.",
    ),
]
Print = Annotated[bool, typer.Option("--print", help="Show what would be set, written and run; start nothing.")]
Write = Annotated[
    bool,
    typer.Option("--write", help="Write the agent's own configuration, for starts without mesh-llm; start no agent."),
]
Undo = Annotated[bool, typer.Option("--undo", help="Take back everything that was written to the agent's files.")]
NoBoard = Annotated[
    bool,
    typer.Option(
        "--no-board", help="Leave out the blackboard: neither its tools nor notices of messages that name you."
    ),
]
Auto = Annotated[
    bool,
    typer.Option(
        "--auto",
        help="Join a public mesh if no node runs. This version knows none yet: it says so and ends.",
    ),
]
# How often a node is asked again to take this launcher, while the last one lets go of it.
ATTACH_TRIES = 3
INVITE_FILE = "invite"


def launcher(name: str) -> Callable[..., None]:
    """The command that starts the agent `name`."""

    def start(
        arguments: Arguments = None,
        model: Model = None,
        port: Port = None,
        join: Join = None,
        print_only: Print = False,
        write: Write = False,
        undo: Undo = False,
        auto: Auto = False,
        no_board: NoBoard = False,
    ) -> None:
        if undo and (print_only or write):
            raise UsageError("--undo excludes --print and --write.", advice="Give one of them.")
        found = _launcher(name)
        if undo:
            _undo(found)
        elif print_only:
            _print(found, port, model, arguments or [], write=write, no_board=no_board)
        else:
            _start(found, port, model, join or [], arguments or [], write=write, auto=auto, no_board=no_board)

    from meshllm.agents.description import known_agents

    title = known_agents()[name].title
    start.__doc__ = (
        f"Start {title} on the mesh.\n\nUses the node on --port, or starts one that joins the mesh and ends with the "
        "agent."
    )
    return start


def agents(json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False) -> None:
    """List the coding agents: which are installed, configured for the mesh, and when they were started last."""
    from concurrent.futures import ThreadPoolExecutor

    from meshllm.agents.description import known_agents

    with ThreadPoolExecutor(len(known_agents())) as pool:
        rows = list(pool.map(_row, known_agents()))
    if json:
        import orjson

        typer.echo(orjson.dumps({"agents": rows}, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(rows)


def _row(name: str) -> dict[str, Any]:
    from meshllm.agents.launcher import AGENTS_FOLDER
    from meshllm.agents.process import version_of

    found = _launcher(name)
    program = found.found_program()
    last = found.last_launch(paths.home() / AGENTS_FOLDER)
    return {
        "name": name,
        "title": found.agent.title,
        "program": program,
        "version": version_of(program, found.agent.version) if program is not None else "",
        "files": [str(path) for path in found.configured_files()],
        "last_launch": None if last is None else {"at": last.at, "model": last.model},
        "install": found.agent.install,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from meshllm.util.format import printable

    table = Table(box=None, pad_edge=False)
    for heading in ("command", "agent", "installed", "configured", "last started"):
        table.add_column(heading)
    for row in rows:
        last = row["last_launch"]
        when = f"{datetime.fromtimestamp(last['at']).astimezone():%Y-%m-%d %H:%M}, {last['model']}" if last else ""
        installed = (row["version"] or "yes") if row["program"] is not None else "no"
        files = ", ".join(Path(path).name for path in row["files"])
        table.add_row(*(printable(text) for text in (row["name"], row["title"], installed, files, when)))
    console = Console()
    console.print(table)
    if missing := next((row["name"] for row in rows if row["program"] is None), None):
        console.print(f"'mesh-llm {missing}' says how to install it.", highlight=False)


def _launcher(name: str) -> Launcher:
    from meshllm.agents.description import known_agents
    from meshllm.agents.launcher import Launcher

    return Launcher(known_agents()[name], paths.home(), os.environ)


def _undo(found: Launcher) -> None:
    """Take everything back. Raises EnvironmentFailure if something of ours is left."""
    results = found.undo()
    if not results:
        typer.echo(f"Nothing was written for {found.agent.title}.")
    for result in results:
        typer.echo(f"{result.path} {result.text}", err=not result.done)
    if not all(result.done for result in results):
        raise EnvironmentFailure("Some files still have entries of mesh-llm.", advice="They are named above.")


def _print(
    found: Launcher, port: int | None, model: str | None, arguments: list[str], *, write: bool, no_board: bool
) -> None:
    """Show what a start would do, or what would be written, with the models of the node if one answers."""
    from meshllm.agents import node as nodes
    from meshllm.core.routing.agent_choice import choose_model

    node = nodes.find_node(port, DEFAULT_PORT, _running())
    chosen: AgentModel | None = None
    models: tuple[AgentModel, ...] = ()
    if node is not None:
        node = _with_key(node)
        models = nodes.wait_for_models(node, model, started=False, say=lambda text: None)
        best = choose_model(models)
        chosen = nodes.find_model(models, model) if model else best.model if best else None
    else:
        typer.echo("# No node answers: MODEL and the limits of its context are filled in at the start.")
    board = _board(found, node, write=write) if not no_board else ()
    values = found.values(node, chosen, models, board)
    typer.echo(found.written(values) if write else found.description(values, arguments))
    for warning in found.warnings(values) if chosen is not None else ():
        typer.echo(f"Warning: {warning}", err=True)


def _start(
    found: Launcher,
    port: int | None,
    model: str | None,
    join: list[str],
    arguments: list[str],
    *,
    write: bool,
    auto: bool,
    no_board: bool,
) -> None:
    """Find or start the node, choose the model, and start the agent or write its files. Exits with its status."""
    from meshllm.agents import node as nodes
    from meshllm.core.routing.agent_choice import choose_model

    if not write:
        found.program()  # before a node is started in vain
    invites = _invites(join)
    with _progress() as say, _node(port, invites, say, auto=auto) as (node, started, attachment):
        models = nodes.wait_for_models(node, model, started=started, say=say)
        choice = choose_model(models)
        assert choice is not None
        chosen = choice.model if model is None else nodes.find_model(models, model)
        say("")
        board = _board(found, node, write=write) if not no_board else ()
        values = found.values(node, chosen, models, board)
        if write:
            _written(found, found.write(values), found.how_to_start(values))
            return
        if model is None:
            typer.echo(choice.reason, err=True)
        status = found.run(values, arguments, attachment.keep, lambda text: typer.echo(f"Warning: {text}", err=True))
    sys.exit(status)


def _board(found: Launcher, node: NodeAddress | None, *, write: bool) -> tuple[str, ...]:
    """The words that start mesh-llm, if the agent gets the blackboard; says whether it does, and if not, why."""
    from meshllm.agents.board import board_state

    agent = found.agent
    if (agent.board_write if write else agent.board) is None:
        typer.echo(f"Blackboard: {agent.title} takes no MCP server{' that way' if write else ''}.", err=True)
        return ()
    if node is not None and not (state := board_state(node)).enabled:
        typer.echo(f"Blackboard: left out. {state.reason}", err=True)
        return ()
    typer.echo(f"Blackboard: {agent.title} gets its tools as MCP server 'mesh'. Leave it out: --no-board.", err=True)
    return tuple(_own_program())


def _own_program() -> list[str]:
    """The words that start this very mesh-llm."""
    program = Path(sys.argv[0]).absolute()
    if os.access(program, os.X_OK) and program.is_file() and program.suffix != ".py":
        return [str(program)]
    return [sys.executable, "-P", "-m", "meshllm.cli.program"]


def _written(found: Launcher, files: list[Path], run: str) -> None:
    for path in files:
        typer.echo(f"Written: {path}")
    if not files:
        typer.echo(f"{found.agent.title} is configured already.")
    typer.echo(f"Start it: {run}\nTake it back: mesh-llm {found.agent.name} --undo")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What shows on standard error what is waited for: one line that changes on a terminal; else each text once."""
    if not sys.stderr.isatty():
        shown = ""

        def say_once(text: str) -> None:
            nonlocal shown
            if text and text != shown:
                typer.echo(text, err=True)
            shown = text

        yield say_once
        return
    from rich.console import Console

    status = Console(stderr=True).status("")
    running = False

    def say(text: str) -> None:
        nonlocal running
        if text:
            from rich.markup import escape

            status.update(escape(text))
            if not running:
                status.start()
        elif running:
            status.stop()
        running = bool(text)

    try:
        yield say
    finally:
        say("")


@contextmanager
def _node(
    port: int | None, invites: str, say: Callable[[str], None], *, auto: bool
) -> Iterator[tuple[NodeAddress, bool, Attachment]]:
    """The node to use, whether it was started here, and the attachment to it, for the length of the block."""
    from meshllm.agents.attachment import Attachment
    from meshllm.agents.launcher import AGENTS_FOLDER, locked
    from meshllm.agents.node import find_node

    started: StartedNode | None = None
    attachment = Attachment(_running)
    try:
        # One launcher at a time looks for a node or starts it.
        with locked(paths.home(), "start.lock"):
            node = find_node(port, DEFAULT_PORT, _running())
            tries = 0
            while node is not None and node.console and not attachment.open(node):
                # It stops: a later one can be started once it has gone.
                say("waiting for the end of a node that stops")
                tries += 1
                node = _gone(node) if tries < ATTACH_TRIES else None
            if node is None and auto:
                raise UsageError(
                    "--auto: this version knows no public meshes, and no node runs here.",
                    advice="Join a mesh with --join INVITE ('mesh-llm invite' prints one there). Without --auto a node "
                    "joins the mesh that it was in.",
                )
            if node is None:
                say("starting a node")
                started = _start_node(port or DEFAULT_PORT, invites)
                try:
                    node = started.wait_until_listening(_running)
                finally:
                    (paths.home() / AGENTS_FOLDER / INVITE_FILE).unlink(missing_ok=True)
        if (invites or auto) and started is None:
            typer.echo(f"A node runs already: {'--join' if invites else '--auto'} is not used.", err=True)
        yield _with_key(node), started is not None, attachment
    finally:
        attachment.close()
        if started is not None:
            started.detach()


def _gone(node: NodeAddress) -> NodeAddress | None:
    """Wait until the node of this home ends; None then, or the node that runs instead."""
    import time

    for _ in range(100):
        running = _running()
        if running is None or running != node:
            return running
        time.sleep(0.1)
    return node


def _start_node(port: int, invites: str) -> StartedNode:
    from meshllm.agents.launcher import AGENTS_FOLDER
    from meshllm.agents.node import Listener, StartedNode, listener
    from meshllm.util.atomic_file import replace_file

    folder = paths.home() / AGENTS_FOLDER
    console = DEFAULT_CONSOLE if listener(DEFAULT_CONSOLE) is Listener.NOTHING and port != DEFAULT_CONSOLE else 0
    arguments = ["--port", str(port), "--console", str(console)]
    if invites:
        # An invite is a secret: arguments can be read by every user of the machine.
        replace_file(folder / INVITE_FILE, invites, mode=0o600)
        arguments += ["--join", f"@{folder / INVITE_FILE}"]
    return StartedNode(_own_program(), arguments, os.environ, folder / "node.err")


def _running() -> NodeAddress | None:
    """The node of this MESH_LLM_HOME."""
    from meshllm.agents.node import NodeAddress
    from meshllm.daemon import pidfile

    running = pidfile.read(paths.home())
    return None if running is None else NodeAddress(running.port, running.console, running.token)


def _with_key(node: NodeAddress) -> NodeAddress:
    """The node with the key that its API asks for on this machine. Raises EnvironmentFailure if it is not known."""
    from dataclasses import replace

    from meshllm.agents.node import needs_key

    if not needs_key(node):
        return node
    key = os.environ.get("MESH_LLM_API_KEY", "")
    if not key and node.console:
        import orjson

        from meshllm.cli.console_client import ask

        status, body = ask(node.console, "POST", "/api/key")
        key = str(orjson.loads(body)["key"]) if status == 200 else ""
    if not key:
        raise EnvironmentFailure(
            f"The node on port {node.port} asks for an API key.",
            advice="Set MESH_LLM_HOME to the home of that node, or MESH_LLM_API_KEY to its key.",
        )
    return replace(node, key=key)


def _invites(options: list[str]) -> str:
    """The text of the invites, one on a line; checked. Raises as `join.read` does."""
    if not options:
        return ""
    from meshllm.cli import join as join_option
    from meshllm.daemon import mesh_choice
    from meshllm.wire.mesh.invite import encode

    invites = join_option.read(
        options,
        is_member=lambda invite, now: mesh_choice.is_member(paths.home(), invite, now),
        say=lambda text: typer.echo(text, err=True),
    )
    return "".join(f"{encode(invite)}\n" for invite in invites)
