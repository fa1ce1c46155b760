"""Starting a node: what the options mean together, and the run itself.

Law: nothing heavy is imported at the top, and what cannot work is refused before anything is begun.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshllm.cli.view import JsonViewer, LineViewer
    from meshllm.daemon.settings import Backend, Settings


def backends(texts: list[str]) -> tuple[Backend, ...]:
    """What `--backend` names, each once. Raises BadBackend."""
    from meshllm.daemon.settings import Backend
    from meshllm.errors import BadBackend
    from meshllm.web.gateway.backends import check_url

    found: dict[str, Backend] = {}
    for text in texts:
        url, comma, option = text.partition(",")
        name, _, variable = option.partition("=")
        if comma and (name != "key" or not variable.isidentifier()):
            raise BadBackend(
                f"{text!r}: what stands behind the comma is not understood.",
                advice="Name the environment variable that holds the key: --backend URL,key=VARIABLE",
            )
        base = check_url(url)
        if base in found:
            raise BadBackend(f"{base} is named twice.", advice="Name each backend once.")
        found[base] = Backend(base, variable)
    return tuple(found.values())


def node_name(given: str) -> str:
    """What others call this node: as given, or the host's name without its domain. Raises UsageError."""
    import platform

    from meshllm.core.records import MAX_NAME_BYTES
    from meshllm.errors import UsageError
    from meshllm.wire.mesh.fields import is_text

    name = given.strip() or platform.node().partition(".")[0]
    if not is_text(name):
        if given:
            raise UsageError("--name has characters that cannot be shown, or too many.", advice="Choose a plain name.")
        return "".join(character for character in name if is_text(character))[: MAX_NAME_BYTES // 4]
    return name


def check(settings: Settings) -> None:
    """Whether the options go together. Raises UsageError for those that do not."""
    from meshllm.errors import UsageError

    lent = ((settings.max_memory, "--max-vram"), (settings.devices, "--device"))
    for given, option in ((settings.models, "--model"), (settings.backends, "--backend"), *lent):
        if settings.client and given:
            raise UsageError(
                f"A client serves nothing, so --client and {option} do not go together.",
                advice=f"Leave out --client to serve, or {option} only to use the mesh.",
            )
    if settings.port and settings.port == settings.console:
        raise UsageError("The API and the console cannot share a port.", advice="Choose another with --console.")
    if settings.draft is not None:
        for refused, option in ((not settings.drafts, "--no-draft"), (not settings.speculation, "--no-speculation")):
            if refused:
                raise UsageError(f"--draft and {option} do not go together.", advice="Leave out one of them.")
        if not settings.models:
            raise UsageError("--draft helps a model, but there is no --model.", advice="Add --model NAME.")
    if settings.split and not settings.models:
        raise UsageError("--split spreads a model, but there is no --model.", advice="Add --model NAME.")
    if settings.context is not None and not settings.models:
        raise UsageError("--ctx-size says how to serve a model, but there is no --model.", advice="Add --model NAME.")


def run(settings: Settings, *, json: bool, verbose: bool) -> None:
    """The node's whole life; what it says goes to standard output. Raises MeshError where it cannot begin."""
    import asyncio

    import uvloop

    from meshllm.daemon.app import App

    idle = not (settings.models or settings.backends or settings.invites or settings.client)
    viewer = _viewer(json, verbose, idle=idle)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(App(settings, viewer).run())
    finally:
        viewer.close()


def _viewer(json: bool, verbose: bool, *, idle: bool) -> LineViewer | JsonViewer:
    import logging

    from meshllm.cli import view

    level = logging.DEBUG if verbose else logging.WARNING
    if json:
        viewer = view.JsonViewer(sys.stdout)
        logging.basicConfig(level=min(level, logging.INFO), handlers=[view.JsonLogHandler(viewer)])
        return viewer
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(soft_wrap=True)
        handler = RichHandler(console=console, show_path=False, log_time_format="[%X]")
        logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
        return view.LiveViewer(console, idle=idle)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    return view.LineViewer(view.PlainConsole(sys.stdout), idle=idle)
