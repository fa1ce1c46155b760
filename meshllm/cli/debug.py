"""`mesh-llm debug dump`: writes a file with what a maintainer needs to find a fault, without secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meshllm.cli.flags import Commands

app = Commands(help="Collect information about this node for a bug report.", no_args_is_help=True)


@app.callback()
def _debug() -> None:
    """Collect information about this node for a bug report."""


@app.command()
def dump(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it. Default: a new file in this folder."),
    ] = None,
) -> None:
    """Write a .tar.gz file with version, doctor output, status, metrics, recent requests and logs, without secrets."""
    import asyncio
    from datetime import UTC, datetime

    from meshllm import paths
    from meshllm.cli import debug_bundle

    now = datetime.now(UTC)
    path = output or Path(f"mesh-llm-debug-{now:%Y%m%d-%H%M%S}.tar.gz")
    files = asyncio.run(debug_bundle.collect(paths.home()))
    debug_bundle.write(path, files, now)
    typer.echo(f"Wrote {path} ({path.stat().st_size / 1e3:,.0f} kB):")
    for name, data in sorted(files.items()):
        typer.echo(f"  {len(data) / 1e3:9,.1f} kB  {name}")
    typer.echo(
        "It can be shared: it contains no invites, keys, prompts or answers. It does contain the names of nodes,\n"
        "models and files, and addresses of your local network; public IP addresses are replaced."
    )
