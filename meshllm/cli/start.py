"""Starting a node: checks options against each other, sets up logging and terminal output, runs the daemon.

Nothing heavy is imported at the top.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from meshllm.errors import MeshError, unusable_file

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping
    from pathlib import Path

    from meshllm.cli.view import JsonViewer, LineViewer
    from meshllm.daemon.log_file import LogFile
    from meshllm.daemon.settings import Backend, Settings, StartCommand

# As for the template in a model file.
MAX_TEMPLATE_BYTES = 1 << 20
MAX_ALIAS = 512


def backends(texts: list[str]) -> tuple[Backend, ...]:
    """The backends of the values of `--backend`. Raises BadBackend, also for one given twice."""
    from meshllm.daemon.settings import Backend
    from meshllm.errors import BadBackend
    from meshllm.web.gateway.backends import check_url

    found: dict[str, Backend] = {}
    for text in texts:
        url, comma, option = text.partition(",")
        name, _, variable = option.partition("=")
        if comma and (name != "key" or not variable.isidentifier()):
            raise BadBackend(
                f"--backend {text!r}: unknown option behind the comma.",
                advice="The only option names the environment variable with the API key: --backend URL,key=VARIABLE",
            )
        base = check_url(url)
        if base in found:
            raise BadBackend(f"--backend {base} is given twice.", advice="Give each backend once.")
        found[base] = Backend(base, variable)
    return tuple(found.values())


def aliases(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """(name, model) of each `NAME=MODEL`. Raises BadParameter."""
    import typer

    found: dict[str, str] = {}
    for text in texts:
        name, _, model = (part.strip() for part in text.partition("="))
        if not name or not model or not text.isprintable() or len(text) > MAX_ALIAS:
            raise typer.BadParameter(f"{text[:80]!r} is not an alias. Give it as NAME=MODEL, such as gpt-4o=Qwen3-8B.")
        if found.setdefault(name, model) != model:
            raise typer.BadParameter(
                f"The alias {name} is given for {found[name]} and for {model}. Remove one of them."
            )
    return tuple(found.items())


def declared_tools(texts: list[str]) -> tuple[tuple[str, bool], ...]:
    """(model, whether it calls tools) of each `MODEL=yes|no`. Raises BadParameter."""
    import typer

    found: dict[str, bool] = {}
    for text in texts:
        name, _, word = (part.strip() for part in text.rpartition("="))
        if not name or word not in ("yes", "no") or not text.isprintable() or len(text) > MAX_ALIAS:
            raise typer.BadParameter(f"{text[:80]!r}: give it as MODEL=yes or MODEL=no, such as Qwen3-8B=yes.")
        if found.setdefault(name, word == "yes") != (word == "yes"):
            raise typer.BadParameter(f"--tools says both yes and no of {name}. Remove one of them.")
    return tuple(found.items())


def node_name(given: str) -> str:
    """The node's name: as given, or the host name without its domain. Raises UsageError."""
    import platform

    from meshllm.core.records import MAX_NAME_BYTES
    from meshllm.errors import UsageError
    from meshllm.wire.mesh.fields import is_text

    name = given.strip() or platform.node().partition(".")[0]
    if not is_text(name):
        if given:
            raise UsageError(
                "--node-name is too long or has control characters.",
                advice="Choose a shorter name of printable characters.",
            )
        return "".join(character for character in name if is_text(character))[: MAX_NAME_BYTES // 4]
    return name


def writer_name(given: str, environment: Mapping[str, str]) -> str:
    """The name of this node's owner on the blackboard: as given, or the user's; empty if the system has none.
    Raises UsageError."""
    import getpass

    from meshllm.core.board.entries import MAX_AUTHOR_NAME_BYTES
    from meshllm.errors import UsageError
    from meshllm.wire.mesh.fields import is_text

    name = given.strip()
    if name:
        if not is_text(name) or len(name.encode()) > MAX_AUTHOR_NAME_BYTES or "@" in name:
            raise UsageError(
                f"--name must have at most {MAX_AUTHOR_NAME_BYTES} bytes of printable characters and no @.",
                advice="It is your name on the blackboard. --node-name names the node.",
            )
        return name
    name = environment.get("USER", "")
    if not name:
        with suppress(OSError, KeyError):  # a container whose user has no entry in its user database
            name = getpass.getuser()
    kept = "".join(letter for letter in name.replace("@", "-") if is_text(letter))
    return kept.encode()[:MAX_AUTHOR_NAME_BYTES].decode(errors="ignore").strip()


def check(settings: Settings) -> None:
    """Raise UsageError for options that exclude each other."""
    from meshllm.errors import UsageError

    memory = (
        (settings.on_demand, "--on-demand"),
        (settings.fetch_on_demand, "--fetch-on-demand"),
        (settings.max_memory, "--max-vram"),
        (settings.devices, "--device"),
    )
    for given, option in ((settings.models, "--model"), (settings.backends, "--backend"), *memory):
        if settings.client and given:
            raise UsageError(
                f"--client and {option} exclude each other: a client serves no models.",
                advice=f"Remove --client to serve models, or {option} to only use the mesh.",
            )
    if settings.port and settings.port == settings.console:
        raise UsageError(
            f"The API and the console cannot both listen on port {settings.port}.",
            advice="Choose another with --console.",
        )
    if settings.ollama_port and settings.ollama_port in (settings.port, settings.console):
        other = "--port" if settings.ollama_port == settings.port else "--console"
        raise UsageError(
            f"--ollama-port and {other} cannot both be {settings.ollama_port}.",
            advice="Choose another with --ollama-port. The port of the API answers Ollama's clients, too.",
        )
    if settings.draft is not None:
        for refused, option in ((not settings.drafts, "--no-draft"), (not settings.speculation, "--no-speculation")):
            if refused:
                raise UsageError(f"--draft and {option} exclude each other.", advice="Remove one of them.")
        if not settings.models:
            raise UsageError("--draft needs a --model.", advice="Add --model NAME.")
    if settings.board_memory and not settings.blackboard:
        raise UsageError("--blackboard-memory and --no-blackboard exclude each other.", advice="Remove one of them.")
    if settings.fetch_on_demand and settings.on_demand is False:
        raise UsageError("--fetch-on-demand and --no-on-demand exclude each other.", advice="Remove one of them.")
    if settings.max_download is not None and not settings.fetch_on_demand:
        raise UsageError("--max-download needs --fetch-on-demand.", advice="Add --fetch-on-demand.")
    if settings.serve_all and not settings.models:
        raise UsageError("--serve-all needs a --model.", advice="Add --model NAME.")
    if settings.split and not settings.models:
        raise UsageError("--split needs a --model.", advice="Add --model NAME.")
    if settings.chat_template is not None:
        _check_template(settings.chat_template, settings.models)
    # A node that joined loads models of its disk for requests, unless its owner forbids it.
    joins = bool(settings.invites) and settings.on_demand is not False
    on_demand = settings.on_demand or settings.fetch_on_demand or joins
    if settings.context is not None and not settings.models and not on_demand:
        advice = "Add --model NAME, or --on-demand, or --join INVITE: such nodes load models for requests."
        if settings.on_demand is False:
            advice = "This node loads no model with --no-on-demand: add --model NAME, or remove that."
        raise UsageError("--ctx-size needs a model that this node serves.", advice=advice)


def _check_template(path: Path, models: tuple[str, ...]) -> None:
    """Raise UsageError for a `--chat-template` that cannot be used."""
    from meshllm.errors import UsageError

    if not models:
        raise UsageError("--chat-template needs a --model.", advice="Add --model NAME.")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEMPLATE_BYTES + 1).decode()
    except OSError as error:
        raise UsageError(
            f"--chat-template {path} cannot be read: {error.strerror or error}.", advice="Name a Jinja file."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--chat-template {path} is no text.", advice="Name a Jinja file (UTF-8).") from error
    if not text.strip() or len(text) > MAX_TEMPLATE_BYTES:
        what = "has more than 1 MiB" if text.strip() else "is empty"
        raise UsageError(f"--chat-template {path} {what}.", advice="Name a Jinja file.")


def run(settings: Settings, *, json: bool, verbose: bool) -> None:
    """Run the daemon until it stops. Raises MeshError if it cannot start."""
    import asyncio
    import logging

    import uvloop

    from meshllm.cli import temporary_folder
    from meshllm.daemon.app import App
    from meshllm.daemon.log_file import LogFile, RotatingFile, log_path

    try:
        temporary_folder.ensure(settings.home)
    except OSError as error:
        raise unusable_file(error) from error
    idle = not (settings.models or settings.backends or settings.invites or settings.client)
    viewer, handler = _output(json, settings.command, idle=idle, verbose=verbose)
    log_file = LogFile(RotatingFile(log_path(settings.home)), json=json)
    _set_up_logging(handler, log_file, verbose=verbose, json=json)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            following: Settings | None = settings
            while following is not None:
                app = App(following, viewer, log_file, ends_process=True)
                runner.run(app.run())
                following = app.next_settings
    except MeshError as error:
        # For the log file alone: the terminal gets it from `entry.give_up`.
        log_file.handle(_record(logging.ERROR, f"the daemon ends: {error}"))
        raise
    except Exception:
        log_file.handle(_record(logging.CRITICAL, "the daemon ends: this is a defect", sys.exc_info()))
        raise
    finally:
        with suppress(OSError):  # the terminal is closed
            viewer.close()
        logging.getLogger().removeHandler(log_file)
        log_file.close()
        _close_output()


def _output(
    json: bool, command: StartCommand, *, idle: bool, verbose: bool
) -> tuple[LineViewer | JsonViewer, logging.Handler]:
    """What shows changes on standard output, and the handler that shows log records there or on standard error."""
    import logging

    from meshllm.cli import view
    from meshllm.daemon.log_format import NoticeFormatter, TerminalFormatter

    if json:
        viewer = view.JsonViewer(sys.stdout)
        return viewer, view.JsonLogHandler(viewer)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(soft_wrap=True)
        handler: logging.Handler = RichHandler(console=console, show_path=False, log_time_format="[%X]")
        handler.setFormatter(TerminalFormatter("%(message)s", fields=verbose))
        return view.LiveViewer(console, command, idle=idle), handler
    handler = logging.StreamHandler(sys.stderr)
    dated = TerminalFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", fields=True)
    handler.setFormatter(dated if verbose else NoticeFormatter())
    return view.LineViewer(view.PlainConsole(sys.stdout), command, idle=idle), handler


def _set_up_logging(terminal: logging.Handler, log_file: LogFile, *, verbose: bool, json: bool) -> None:
    """File: INFO of `meshllm`, WARNING of libraries. Terminal: WARNING; INFO as JSON lines. `verbose`: DEBUG of
    `meshllm` and INFO of libraries in both."""
    import logging

    from meshllm.daemon.log_flood import FloodFilter

    terminal.addFilter(FloodFilter())
    terminal.setLevel(logging.DEBUG if verbose else logging.INFO if json else logging.WARNING)
    # Otherwise logging reports a closed terminal or pipe to that same terminal or pipe.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("meshllm").setLevel(logging.DEBUG if verbose else logging.INFO)
    root.handlers[:] = [terminal, log_file]


def _record(level: int, text: str, error: Any = None) -> logging.LogRecord:
    import logging

    return logging.LogRecord("meshllm.daemon", level, "", 0, text, None, error)


def _close_output() -> None:
    """Flush standard output; if its reader is gone, replace it, or Python would fail on it at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
