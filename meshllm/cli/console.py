"""`mesh-llm console`: prints the URL that opens the console's page as the owner of the node."""

from __future__ import annotations

import typer

from meshllm.errors import NotRunning


def console() -> None:
    """Print the URL that opens the console of the node of MESH_LLM_HOME. It is a secret, good until the node stops.

    The URL is not handed to a browser by this command: every user of the machine can read a program's arguments.
    """
    from meshllm import paths
    from meshllm.daemon import pidfile

    running = pidfile.read(paths.home())
    if running is None:
        raise NotRunning(
            f"No mesh-llm is running with the home {paths.home()}.",
            advice="Start one with 'mesh-llm', or set MESH_LLM_HOME to the home of the node.",
        )
    typer.echo(running.page)
